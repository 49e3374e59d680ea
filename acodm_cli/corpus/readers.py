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

_KINDS = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".txt": "text", ".md": "text", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
_COMPRESSED = (".gz", ".zst")
_ROWS = 1024


@dataclass(frozen=True)
class Fields:
    """text: of the document. domain: of its domain's name, None if the file has but one. Dots lead into nested records."""

    text: str = "text"
    domain: str | None = None


PLAIN = Fields()


@dataclass(frozen=True)
class Document:
    """domain: None if it was not asked for."""

    text: str
    domain: str | None


def file_kind(path: Path) -> str | None:
    """json, text, parquet or arrow; None for what is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        compressible = suffixes[-2] if len(suffixes) > 1 else ""
        return _KINDS.get(compressible) if _KINDS.get(compressible) in ("json", "text") else None
    return _KINDS.get(suffixes[-1]) if suffixes else None


def document_of(record: Any, fields: Fields, where: Callable[[], str]) -> Document:
    """Raises UsageError, with where() it is, if the record lacks a field or its text is not valid Unicode."""
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
    """Whether it can be written at all: JSON escapes, and names of files that are not UTF-8, give strings that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _field(record: Any, name: str) -> Any:
    """By its whole name, else step by step along its dots."""
    if isinstance(record, dict) and name in record:
        return record[name]
    for part in name.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def read_documents(
    path: Path, fields: Fields = PLAIN, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[Document]:
    """The documents of one file, in order. on_bytes: told how many bytes of the file were read since last time.

    Raises:
        UsageError: a record that is not valid, with file and line or row.
    """
    kind = file_kind(path)
    assert kind is not None
    if kind in ("parquet", "arrow"):
        yield from _read_rows(path, kind, fields, on_bytes)
        return
    try:
        with path.open("rb") as file:
            counted = _Counted(file, on_bytes)
            with _decompressed(path, counted) as stream:
                if kind == "json":
                    yield from _read_json_lines(path, stream, fields)
                elif fields.domain is None:
                    yield Document(_decode(stream.read(), path, None), None)
                else:
                    raise UsageError(f"{path}: a text file has no field {fields.domain!r}; use .jsonl or .parquet")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: damaged or truncated archive ({error}); compress or fetch it again") from None
    except OSError as error:  # also how Arrow reports a damaged zstd frame
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}); fetch it again") from None


class _Counted(io.RawIOBase):
    """Reports how far a file has been read, compressed or not."""

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


def _decompressed(path: Path, raw: _Counted) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=io.BufferedReader(raw), mode="rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        # Arrow's reader takes a frame that ends early for an error, zstandard's for the end of the data.
        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
    return io.BufferedReader(raw)


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


def _read_rows(path: Path, kind: str, fields: Fields, on_bytes: Callable[[int], None]) -> Iterator[Document]:
    size, row = path.stat().st_size, 0
    try:
        for batch, share in (
            parquet_batches(path, str(path), fields) if kind == "parquet" else _arrow_batches(path, fields)
        ):
            for record in batch.to_pylist():
                yield document_of(record, fields, lambda row=row: f"{path}: row {row}")  # type: ignore[misc]
                row += 1
            on_bytes(round(size * share))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a readable {kind} file ({str(error).splitlines()[0]})") from None


def _columns(where: str, names: list[str], fields: Fields) -> list[str]:
    """The columns that hold the fields: nothing else is read."""
    wanted = []
    for field in (fields.text, fields.domain):
        if field is not None:
            column = field if field in names else field.split(".")[0]
            if column not in names:
                raise UsageError(f'{where}: no column "{column}"; its columns are {", ".join(names)}')
            wanted.append(column)
    return list(dict.fromkeys(wanted))


def parquet_batches(source: Path | IO[bytes], where: str, fields: Fields) -> Iterator[tuple[pa.RecordBatch, float]]:
    """(rows, their share of the file)"""
    # Not memory-mapped and not read ahead: what is resident is one batch.
    with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
        columns = _columns(where, file.schema_arrow.names, fields)
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            yield batch, len(batch) / max(file.metadata.num_rows, 1)


def _arrow_batches(path: Path, fields: Fields) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Both of Arrow's formats: files, and the streams that `datasets` saves."""
    with pa.OSFile(str(path)) as source:
        size, last = source.size(), 0
        try:
            file = pa.ipc.open_file(source)
            batches = ((file.get_batch(i), 1 / file.num_record_batches) for i in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_stream(source)
            batches = ((batch, 0.0) for batch in file)  # its length is not known ahead: the position tells
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
