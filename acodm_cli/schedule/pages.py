"""Bounds on what a Parquet file expands to, found without expanding it.

The footer of a file can say anything of its columns, while what a reader allocates for a page is what the page's own header
says: a page of a few kilobytes may claim, and give, two gigabytes. So the headers are walked first. They are Thrift structs in
the compact protocol (https://github.com/apache/parquet-format, PageHeader), of which two fields are of interest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import BinaryIO

import pyarrow.parquet as pq

# A writer puts at most a column's values in its pages, eight bytes each, and some levels and statistics.
_BYTES_PER_ROW = 16
_BYTES_MORE = 1 << 24
_LONGEST_HEADER = 1 << 16
_MOST_PAGES = 1 << 17
_UNCOMPRESSED, _COMPRESSED = 2, 3  # the numbers of the fields


def expansion_of(file: BinaryIO, metadata: pq.FileMetaData, columns: Collection[str]) -> str | None:
    """Returns what is wrong with the size of some column, None if all columns are as large as their rows need.

    file: the open file. metadata: its footer. columns: those that will be read.

    Raises:
        ValueError: the pages are not where the footer says, or are no pages.
    """
    budget = _MOST_PAGES
    for group_number in range(metadata.num_row_groups):
        group = metadata.row_group(group_number)
        most = group.num_rows * _BYTES_PER_ROW + _BYTES_MORE
        for number in range(group.num_columns):
            chunk = group.column(number)
            if chunk.path_in_schema not in columns:
                continue
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                start = min(start, chunk.dictionary_page_offset)
            size = 0
            for uncompressed in _sizes(file, start, start + chunk.total_compressed_size):
                size += uncompressed
                budget -= 1
                if size > most:
                    return (
                        f"column {chunk.path_in_schema} expands to more than {most:,} bytes for {group.num_rows:,} rows"
                    )
                if budget < 0:
                    return f"it has more than {_MOST_PAGES:,} pages"
    return None


def _sizes(file: BinaryIO, start: int, end: int) -> Iterator[int]:
    """Yields the size of each page between two places of the file, after decompression, in bytes."""
    while start < end:
        file.seek(start)
        header = _Header(file.read(_LONGEST_HEADER))
        fields = header.fields()
        uncompressed, compressed = fields.get(_UNCOMPRESSED), fields.get(_COMPRESSED)
        if uncompressed is None or compressed is None or uncompressed < 0 or compressed < 0:
            raise ValueError("a page has no sizes")
        yield uncompressed
        start += header.at + compressed


class _Header:
    """Reads one struct in Thrift's compact protocol. at: how far it was read."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def fields(self, depth: int = 0) -> dict[int, int]:
        """Reads a struct and returns those of its fields that are integers."""
        if depth > 8:
            raise ValueError("a page's header is nested too deeply")
        found, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            value = self._value(head & 15, depth)
            if value is not None:
                found[number] = value
        return found

    def _value(self, kind: int, depth: int) -> int | None:
        """Reads a value, and returns it if it is an integer."""
        if kind in (1, 2):  # a boolean is in its type
            return None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            self._skip(8)
        elif kind == 8:
            self._skip(self._varint())
        elif kind in (9, 10):
            if depth > 8:
                raise ValueError("a page's header is nested too deeply")
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._element(head & 15, depth + 1)
        elif kind == 12:
            self.fields(depth + 1)
        else:
            raise ValueError("a page's header has a field of an unknown type")
        return None

    def _element(self, kind: int, depth: int) -> None:
        if kind in (1, 2):
            self._byte()
        else:
            self._value(kind, depth)

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.content):
            raise ValueError("a page's header is cut")

    def _byte(self) -> int:
        if self.at >= len(self.content):
            raise ValueError("a page's header is cut")
        self.at += 1
        return self.content[self.at - 1]

    def _varint(self) -> int:
        value, shift = 0, 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a page's header has a number that does not end")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
