"""Reads documents out of JSONL, Parquet, Arrow and text files, compressed or not.

JSONL is read line by line here and not through a dataframe reader: pretraining corpora carry metadata whose type
changes from record to record, and a broken record must be named by file and line. Nothing here takes memory without
bounds: a record has at most MAX_RECORD_BYTES, a text file MAX_TEXT_BYTES.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from acodm_cli.corpus.compression import COMPRESSIONS, DAMAGED
from acodm_cli.errors import UsageError
from acodm_cli.writing import in_short

MAX_RECORD_BYTES = 1 << 26
MAX_TEXT_BYTES = 1 << 27
_ROWS = 1024
_ROWS_BYTES = 1 << 28
_PIECE = 1 << 16
_EXAMPLES = 3
# A file that holds so many times its own size in text is no ordinary archive; small files may.
_MOST_EXPANSION = 500
_EXPANSION_CHECKED = 1 << 28
_POINTER, _POINTER_BYTES = b"version https://git-lfs", 1024


@dataclass(frozen=True)
class Fields:
    """The fields of a record. text: the field with the document's text. domain: the field with the name of its domain,
    None if the whole file belongs to one domain. prompt: the field with what the text answers, None if it answers nothing.
    Dots lead into nested records, also where they are kept as JSON text."""

    text: str = "text"
    domain: str | None = None
    prompt: str | None = None


PLAIN = Fields()


@dataclass(frozen=True)
class Document:
    """One document. domain: the name of its domain, None if it was not asked for. prompt: what the text answers."""

    text: str
    domain: str | None
    prompt: str = ""


class BadRecord(Exception):
    """A record cannot be used. The message says why; remedy: what its owner can do about it. where: its place, once it is
    known."""

    def __init__(self, reason: str, remedy: str = "repair or remove the record") -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.where = ""

    def at(self, where: str) -> BadRecord:
        """Returns the same with its place."""
        self.where = where
        return self


# What a file is read as: readers yield bad records in their places, and whoever takes them decides.
Item = Document | BadRecord


@dataclass
class BadRecords:
    """Counts the records that cannot be used. limit: how many are left out (--skip-bad); the next one is an error.
    examples: the first few, as messages."""

    limit: int = 0
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, record: BadRecord) -> None:
        """Counts a record that is left out. Raises UsageError if that is one too many."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{record.where}: {record}")
        if self.count > self.limit:
            already = f" ({self.limit} such records were left out before)" if self.limit else ""
            raise UsageError(
                f"{record.where}: {record}{already}; {record.remedy}, or leave out at most N such records with --skip-bad N"
            )


def document_of(record: Any, fields: Fields, labels: list[str] | None = None) -> Document:
    """Returns the document in a record. labels: the names of the domains, if the field holds their numbers in this list.

    Raises:
        BadRecord: the record lacks a field, or its text or domain is not valid Unicode.
    """
    text = _field(record, fields.text)
    if not isinstance(text, str):
        raise BadRecord(
            f'no text in field "{fields.text}", {_what(record, text)}',
            "every record needs one (--text-field names the field)",
        )
    if len(text) > MAX_TEXT_BYTES:
        raise BadRecord(f"its text has {len(text):,} characters, at most {MAX_TEXT_BYTES:,} are read", "split it")
    domain = None
    if fields.domain is not None:
        value = _field(record, fields.domain)
        domain = _domain_name(value, labels)
        if domain is None:
            raise BadRecord(f'no domain in field "{fields.domain}", {_what(record, value)}', "every record needs one")
    prompt = "" if fields.prompt is None else _field(record, fields.prompt)
    if not isinstance(prompt, str):
        raise BadRecord(f'no text in field "{fields.prompt}", {_what(record, prompt)}', "every record needs one")
    for what, value in (("text", text), ("domain", domain or ""), ("prompt", prompt)):
        if not value.isascii() and not is_unicode(value):
            raise BadRecord(f"its {what} holds half a surrogate pair")
    return Document(text, domain, prompt)


def _domain_name(value: Any, labels: list[str] | None) -> str | None:
    """The name of a domain as a field gives it: a text, a number, or the number of a label."""
    if isinstance(value, float) and value.is_integer():  # pandas turns whole numbers with gaps into these
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return labels[value] if labels is not None and 0 <= value < len(labels) else str(value)
    return value.strip() or None if isinstance(value, str) else None


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a record"}


def _what(record: Any, value: Any) -> str:
    """Says what was found instead of what was looked for."""
    if not isinstance(record, dict):
        return f"because it is not a record but {_KINDS.get(type(record), 'null')}"
    if value is None:
        fields = ", ".join(list(map(str, record))[:8]) or "none"
        return f"which is null or missing; its fields are {in_short(ValueError(fields))}"
    return f"which is {'empty' if value == '' or isinstance(value, str) else _KINDS.get(type(value), type(value).__name__)}"


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8. JSON escapes, and file names not in UTF-8, give strings that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _field(record: Any, name: str) -> Any:
    """Finds a field by its whole name, or else step by step along its dots."""
    if isinstance(record, dict) and name in record:
        return record[name]
    for part in name.split("."):
        if isinstance(record, str) and record.lstrip().startswith("{"):
            try:
                record = json.loads(record)
            except (ValueError, RecursionError):
                return None
        if isinstance(record, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in record):
            record = dict(record)  # a map of Parquet
        record = record.get(part) if isinstance(record, dict) else None
    return record


def read_documents(path: Path, fields: Fields = PLAIN) -> Iterator[Document]:
    """Yields the documents of one file, in order.

    Raises:
        UsageError: the file cannot be read, or a record is not valid; the message names the file and the line or row.
    """
    bad = BadRecords()
    for item in read_items(path, fields):
        if isinstance(item, Document):
            yield item
        else:
            bad.add(item)


def read_items(path: Path, fields: Fields, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Item]:
    """Yields the documents of one file, and the records that cannot be used, in order.

    on_bytes: told how many bytes were read since its last call.

    Raises:
        UsageError: the file cannot be read.
    """
    most = max(_EXPANSION_CHECKED, _MOST_EXPANSION * size_of(path))
    characters = 0
    for item in _items(path, fields, on_bytes):
        characters += len(item.text) if isinstance(item, Document) else 0
        if characters > most:
            raise UsageError(
                f"{path}: holds more than {_MOST_EXPANSION} times its size in text, as no ordinary archive does; remove it"
            )
        yield item


def size_of(path: Path) -> int:
    """The size of a file in bytes. Raises UsageError if it is not there."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({in_short(error)})") from None


def check_fetched(path: Path) -> None:
    """Raises UsageError if a file is only a pointer of git-lfs to the real one."""
    if size_of(path) < _POINTER_BYTES:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise UsageError(f"{path}: a pointer of git-lfs, not the file itself; fetch it with git lfs pull")


def _items(path: Path, fields: Fields, on_bytes: Callable[[int], None]) -> Iterator[Item]:
    suffix, compression = suffixes(path)
    check_fetched(path)
    if suffix in TABLES:
        yield from _read_rows(path, TABLES[suffix], fields, on_bytes)
        return
    try:
        if compression and not path.stat().st_size:
            raise EOFError("the file is empty")
        with path.open("rb") as file, COMPRESSIONS[compression](_Counted(file, on_bytes)) as stream:
            yield from STREAMS[suffix](path, _without_mark(path, stream), fields)
    except DAMAGED as error:
        raise UsageError(
            f"{path}: damaged or truncated archive ({in_short(error)}); compress or fetch it again"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({in_short(error)}); fetch it again") from None


class _Counted(io.RawIOBase):
    """Reads a file and reports how many of its bytes were read, compressed or not."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self.file = file
        self.on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.on_bytes(len(data))
        return len(data)


def _without_mark(path: Path, stream: IO[bytes]) -> IO[bytes]:
    """Passes over a byte order mark, which editors on Windows write. Raises UsageError if it is that of UTF-16."""
    assert isinstance(stream, io.BufferedReader)
    start = stream.peek(3)[:3]
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{path}: not UTF-8 but UTF-16; convert the file to UTF-8")
    if start == codecs.BOM_UTF8:
        stream.read(3)
    return stream


def _read_text(path: Path, stream: IO[bytes], fields: Fields) -> Iterator[Item]:
    """Yields the whole file as one document."""
    if (asked := fields.domain or fields.prompt) is not None:
        raise UsageError(f"{path}: a text file has no field {asked!r}; use .jsonl or .parquet")
    data = stream.read(MAX_TEXT_BYTES + 1)
    try:
        if len(data) > MAX_TEXT_BYTES:
            raise BadRecord(
                f"a text file is one document, of at most {MAX_TEXT_BYTES >> 20} MiB",
                "split it, or make a .jsonl with a document per line",
            )
        if b"\0" in data:
            raise BadRecord("holds NUL bytes; it is not text, or not in UTF-8", "convert the file to UTF-8")
        yield Document(_decode(data), None)
    except BadRecord as error:
        yield error.at(str(path))


def _read_json(path: Path, stream: IO[bytes], fields: Fields) -> Iterator[Item]:
    """Yields the documents of JSON lines. One array of records, and records that are indented, are read too."""
    blank, start = _blank_lines(stream)
    if start == b"[":  # in one line, perhaps, that is longer than any record
        yield from _read_spread_json(path, b"", stream, fields)
        return
    for number, line in _lines(stream, blank + 1):
        if line is not None and not line.strip():
            continue
        if number == blank + 1 and line is not None and line.strip() == b"{":
            yield from _read_spread_json(path, line, stream, fields)
            return
        try:
            if line is None:
                raise BadRecord(f"a line of more than {MAX_RECORD_BYTES >> 20} MiB", "split or remove it")
            try:
                record = json.loads(_decode(line))
            except ValueError as error:
                raise BadRecord(f"not valid JSON ({error})", "repair or remove the line") from None
            except RecursionError:
                raise BadRecord("JSON is nested too deeply", "repair or remove the line") from None
            yield document_of(record, fields)
        except BadRecord as error:
            yield error.at(f"{path}:{number}")


def _blank_lines(stream: IO[bytes]) -> tuple[int, bytes]:
    """Passes over white space at the beginning. Returns how many lines that were, and the first other byte."""
    assert isinstance(stream, io.BufferedReader)
    lines = 0
    while head := stream.peek(1):
        rest = head.lstrip()
        lines += head[: len(head) - len(rest)].count(b"\n")
        stream.read(len(head) - len(rest))
        if rest:
            return lines, rest[:1]
    return lines, b""


def _lines(stream: IO[bytes], number: int) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines with their numbers; None for one that is too long. number: the first one's."""
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        if len(line) > MAX_RECORD_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_PIECE)
            yield number, None
        else:
            yield number, line
        number += 1


def _read_spread_json(path: Path, start: bytes, stream: IO[bytes], fields: Fields) -> Iterator[Item]:
    """Yields the documents of an array, or of records that take several lines. start: the line already read."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    number, position, wanted, ended, in_array = 1, 0, _PIECE, False, False
    try:
        text = utf8.decode(start)
        while True:
            position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
            where, next_one = f"{path}: record {number}", text[position : position + 1]
            if next_one == ("]" if in_array else "["):
                in_array, position = not in_array, position + 1
                continue
            if not next_one and ended and not in_array:
                return
            try:
                record, position = decoder.raw_decode(text, position)
            except ValueError as error:  # not complete yet, or not JSON
                if ended or len(text) - position > MAX_RECORD_BYTES:
                    raise UsageError(
                        f"{where}: not valid JSON ({error}); repair it, or write a record per line"
                    ) from None
                more = stream.read(wanted)
                text, position, ended, wanted = text[position:] + utf8.decode(more), 0, not more, 2 * wanted
                continue
            number, wanted = number + 1, _PIECE
            yield item_of(record, fields, where)
    except RecursionError:
        raise UsageError(f"{path}: record {number}: JSON is nested too deeply; repair or remove it") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8; convert the file to UTF-8") from None


_SPACE = re.compile(r"[\s,]*")

Batches = Iterator[tuple[pa.RecordBatch, float]]


def _read_rows(
    path: Path, batches: Callable[[Path, Fields], Batches], fields: Fields, on_bytes: Callable[[int], None]
) -> Iterator[Item]:
    size, row = size_of(path), 0
    try:
        for batch, share in batches(path, fields):
            yield from items_of(batch, fields, f"{path}:", row)
            row += len(batch)
            on_bytes(round(size * share))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a readable {path.suffix[1:]} file ({in_short(error)})") from None


def items_of(batch: pa.RecordBatch, fields: Fields, where: str, first_row: int) -> Iterator[Item]:
    """Yields the documents of some rows. where, first_row: the name of their source and the first one's number in it."""
    labels = _labels(batch.schema, fields)
    for row, record in enumerate(batch.to_pylist(), first_row):
        yield item_of(record, fields, f"{where} row {row}", labels)


def item_of(record: Any, fields: Fields, where: str, labels: list[str] | None = None) -> Item:
    """Returns the document in a record, or the record as a bad one. where: its place."""
    try:
        return document_of(record, fields, labels)
    except BadRecord as error:
        return error.at(where)


def _labels(schema: pa.Schema, fields: Fields) -> list[str] | None:
    """The names that `datasets` has stored for the numbers of the domain field (a ClassLabel), None if there are none."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None or fields.domain is None:
        return None
    try:
        feature = json.loads(stored)["info"]["features"]
        for part in [fields.domain] if fields.domain in feature else fields.domain.split("."):
            feature = feature[part]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _columns(where: str, names: list[str], fields: Fields) -> list[str]:
    """Returns the columns that hold the fields; no other column is read."""
    wanted = []
    for field_name in (fields.text, fields.domain, fields.prompt):
        if field_name is not None:
            column = field_name if field_name in names else field_name.split(".")[0]
            if column not in names:
                options = {fields.text: "--text-field", fields.domain: "--domain-field"}
                hint = f" ({options[field_name]} names another)" if field_name in options and not fields.prompt else ""
                raise UsageError(f'{where}: no column "{column}"; its columns are {", ".join(names)}{hint}')
            wanted.append(column)
    return list(dict.fromkeys(wanted))


def _parquet_batches(path: Path, fields: Fields) -> Batches:
    return parquet_batches(path, str(path), fields)


def parquet_batches(source: Path | IO[bytes], where: str, fields: Fields) -> Batches:
    """Yields (rows, their share of the file). where: the name of the file, for messages."""
    # The file is not memory-mapped and not read ahead, so that only one batch is in memory.
    with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
        columns = _columns(where, file.schema_arrow.names, fields)
        for group in range(file.num_row_groups):
            rows = _rows_at_once(file.metadata.row_group(group), columns, where)
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                yield batch, len(batch) / max(file.metadata.num_rows, 1)


def _rows_at_once(group: pq.RowGroupMetaData, columns: list[str], where: str) -> int:
    """How many rows to take at once, so that a batch is of bounded size also where values are huge, or few values stand
    for many rows. Raises UsageError if rows are too large."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunks = [
        chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns or chunk.path_in_schema in columns
    ]
    total = sum(chunk.total_uncompressed_size for chunk in chunks)
    mean = total / max(group.num_rows, 1)
    if mean > MAX_RECORD_BYTES:
        raise UsageError(
            f"{where}: rows of {mean:,.0f} bytes; at most {MAX_RECORD_BYTES:,} are read, so split the documents"
        )
    largest = max(
        (c.total_uncompressed_size for c in chunks if any("DICTIONARY" in e for e in c.encodings)), default=mean
    )
    return int(min(_ROWS, max(1, _ROWS_BYTES // max(1, min(largest, MAX_RECORD_BYTES)))))


def _arrow_batches(path: Path, fields: Fields) -> Batches:
    """Reads both formats of Arrow: files, and the streams that `datasets` saves."""
    with pa.OSFile(str(path)) as source:
        size, last = source.size(), 0
        try:
            file = pa.ipc.open_file(source)
            batches = ((file.get_batch(i), 1 / file.num_record_batches) for i in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(max(0, size - 4))
            if source.read() != bytes(4):  # its end is marked with zeros
                raise UsageError(f"{path}: truncated (the end of the stream is missing); save it again") from None
            source.seek(0)
            file = pa.ipc.open_stream(source)
            # The number of batches is not known ahead: the position in the file gives the share instead.
            batches = ((batch, 0.0) for batch in file)
        columns = _columns(str(path), file.schema.names, fields)
        for batch, share in batches:
            here = source.tell()
            share, last = share or (here - last) / size, here
            chosen = batch.select(columns)
            for start in range(0, len(chosen), _ROWS):
                part = chosen.slice(start, _ROWS)
                yield part, share * len(part) / len(chosen)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8 (at byte {error.start})", "convert the file to UTF-8") from None


# Readers by the ending of a file's name; a new format is a new line. These read a stream of bytes, compressed or not:
STREAMS: dict[str, Callable[[Path, IO[bytes], Fields], Iterator[Item]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".ndjson": _read_json,
    ".txt": _read_text,
    ".md": _read_text,
}
# These read a file with columns:
TABLES: dict[str, Callable[[Path, Fields], Batches]] = {
    ".parquet": _parquet_batches,
    ".arrow": _arrow_batches,
}


def suffixes(path: Path) -> tuple[str, str]:
    """Returns (ending of the format, ending of the compression or empty), in lower case."""
    *_, before, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    return (before, last) if last in COMPRESSIONS and last else (last, "")


def is_read(path: Path) -> bool:
    """Whether acodm reads a file of this name."""
    suffix, compression = suffixes(path)
    return suffix in STREAMS or (suffix in TABLES and not compression)


def is_text(path: Path) -> bool:
    """Whether a file of this name is one document."""
    return STREAMS.get(suffixes(path)[0]) is _read_text
