"""Reads documents out of JSONL, Parquet, Arrow and text files, compressed or not.

JSONL is read line by line here and not through a dataframe reader: pretraining corpora carry metadata whose type
changes from record to record, and a broken record must be named by file and line.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from acodm_cli.errors import UsageError
from acodm_cli.writing import in_short

_ROWS = 1024


@dataclass(frozen=True)
class Fields:
    """The fields of a record. text: the field with the document's text. domain: the field with the name of its domain,
    None if the whole file belongs to one domain. Dots lead into nested records."""

    text: str = "text"
    domain: str | None = None


PLAIN = Fields()


@dataclass(frozen=True)
class Document:
    """One document. domain: the name of its domain, None if it was not asked for."""

    text: str
    domain: str | None


def document_of(record: Any, fields: Fields, where: Callable[[], str]) -> Document:
    """Returns the document in a record. where: gives the place of the record, for messages.

    Raises:
        UsageError: the record lacks a field, or its text or domain is not valid Unicode.
    """
    text = _field(record, fields.text)
    if not isinstance(text, str):
        raise UsageError(f'{where()}: no text in field "{fields.text}"; every record needs one (--text-field names it)')
    domain = None
    if fields.domain is not None:
        domain = _field(record, fields.domain)
        if not isinstance(domain, str) or not domain.strip():
            raise UsageError(f'{where()}: no domain in field "{fields.domain}"; every record needs one')
    for what, value in (("text", text), ("domain", domain or "")):
        if not value.isascii() and not is_unicode(value):
            raise UsageError(f"{where()}: its {what} holds half a surrogate pair; repair or remove the record")
    return Document(text, domain)


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
        record = record.get(part) if isinstance(record, dict) else None
    return record


def read_documents(
    path: Path, fields: Fields = PLAIN, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[Document]:
    """Yields the documents of one file, in order. on_bytes: told how many bytes were read since its last call.

    Raises:
        UsageError: the file cannot be read, or a record is not valid; the message names the file and the line or row.
    """
    suffix, compression = _suffixes(path)
    if suffix in TABLES:
        yield from _read_rows(path, TABLES[suffix], fields, on_bytes)
        return
    try:
        with path.open("rb") as file:
            counted = _Counted(file, on_bytes)
            with COMPRESSIONS[compression](counted) as stream:
                yield from STREAMS[suffix](path, stream, fields)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: damaged or truncated archive ({error}); compress or fetch it again") from None
    except OSError as error:  # Arrow reports a damaged zstd frame in this way, too
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


def _plain(raw: _Counted) -> IO[bytes]:
    return io.BufferedReader(raw)


def _gzip(raw: _Counted) -> IO[bytes]:
    return gzip.GzipFile(fileobj=io.BufferedReader(raw), mode="rb")  # type: ignore[return-value]


def _zstd(raw: _Counted) -> IO[bytes]:
    # For Arrow's reader, a frame that ends early is an error; for zstandard's, it is the end of the data.
    return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))


def _read_text(path: Path, stream: IO[bytes], fields: Fields) -> Iterator[Document]:
    """Yields the whole file as one document."""
    if fields.domain is not None:
        raise UsageError(f"{path}: a text file has no field {fields.domain!r}; use .jsonl or .parquet")
    yield Document(_decode(stream.read(), path, None), None)


def _read_json_lines(path: Path, stream: IO[bytes], fields: Fields) -> Iterator[Document]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(_decode(line, path, number))
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not valid JSON ({error}); repair or remove the line") from None
        except RecursionError:
            raise UsageError(f"{path}:{number}: JSON is nested too deeply; repair or remove the line") from None
        yield document_of(record, fields, lambda number=number: f"{path}:{number}")  # type: ignore[misc]


Batches = Iterator[tuple[pa.RecordBatch, float]]


def _read_rows(
    path: Path, batches: Callable[[Path, Fields], Batches], fields: Fields, on_bytes: Callable[[int], None]
) -> Iterator[Document]:
    size, row = path.stat().st_size, 0
    try:
        for batch, share in batches(path, fields):
            for record in batch.to_pylist():
                yield document_of(record, fields, lambda row=row: f"{path}: row {row}")  # type: ignore[misc]
                row += 1
            on_bytes(round(size * share))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a readable {path.suffix[1:]} file ({in_short(error)})") from None


def _columns(where: str, names: list[str], fields: Fields) -> list[str]:
    """Returns the columns that hold the fields; no other column is read."""
    wanted = []
    for field in (fields.text, fields.domain):
        if field is not None:
            column = field if field in names else field.split(".")[0]
            if column not in names:
                raise UsageError(f'{where}: no column "{column}"; its columns are {", ".join(names)}')
            wanted.append(column)
    return list(dict.fromkeys(wanted))


def _parquet_batches(path: Path, fields: Fields) -> Batches:
    return parquet_batches(path, str(path), fields)


def parquet_batches(source: Path | IO[bytes], where: str, fields: Fields) -> Batches:
    """Yields (rows, their share of the file). where: the name of the file, for messages."""
    # The file is not memory-mapped and not read ahead, so that only one batch is in memory.
    with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
        columns = _columns(where, file.schema_arrow.names, fields)
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            yield batch, len(batch) / max(file.metadata.num_rows, 1)


def _arrow_batches(path: Path, fields: Fields) -> Batches:
    """Reads both formats of Arrow: files, and the streams that `datasets` saves."""
    with pa.OSFile(str(path)) as source:
        size, last = source.size(), 0
        try:
            file = pa.ipc.open_file(source)
            batches = ((file.get_batch(i), 1 / file.num_record_batches) for i in range(file.num_record_batches))
        except pa.ArrowInvalid:
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


def _decode(data: bytes, path: Path, line: int | None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{path}:{line}" if line else f"{path}: byte {error.start}"
        raise UsageError(f"{where}: not UTF-8; convert the file to UTF-8") from None


# Readers by the ending of a file's name; a new format is a new line. These read a stream of bytes, compressed or not:
STREAMS: dict[str, Callable[[Path, IO[bytes], Fields], Iterator[Document]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".txt": _read_text,
    ".md": _read_text,
}
# These read a file with columns:
TABLES: dict[str, Callable[[Path, Fields], Batches]] = {
    ".parquet": _parquet_batches,
    ".arrow": _arrow_batches,
}
# These decompress a stream, by the last ending of the file's name:
COMPRESSIONS: dict[str, Callable[[_Counted], IO[bytes]]] = {
    "": _plain,
    ".gz": _gzip,
    ".zst": _zstd,
}


def _suffixes(path: Path) -> tuple[str, str]:
    """Returns (ending of the format, ending of the compression or empty), in lower case."""
    *_, before, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    return (before, last) if last in COMPRESSIONS and last else (last, "")


def is_read(path: Path) -> bool:
    """Whether acodm reads a file of this name."""
    suffix, compression = _suffixes(path)
    return suffix in STREAMS or (suffix in TABLES and not compression)
