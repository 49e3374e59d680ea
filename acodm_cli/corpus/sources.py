"""Reads documents from folders of JSONL, Parquet and text files.

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
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from acodm_cli.errors import UsageError

TEXT_FIELD = "text"
_JSON = (".jsonl", ".json", ".ndjson")
_TEXT = (".txt", ".md")
_COMPRESSED = (".gz", ".zst")
_VALIDATION_STEMS = ("validation", "valid", "val", "dev", "test")


@dataclass(frozen=True)
class DomainFiles:
    """One domain's files. validation: empty if a split is to be held out from train."""

    name: str
    train: tuple[Path, ...]
    validation: tuple[Path, ...]


def discover_domains(data: str) -> list[DomainFiles]:
    """Domains of a folder with one sub-folder per domain, in order of name.

    In a sub-folder, files whose name starts with validation, valid, val, dev or test are its validation split (the
    first of these kinds that exists); all other readable files are its training split.

    Raises:
        UsageError: the folder is missing, has no sub-folder, or a domain has no readable file.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise UsageError(f"--data {data} is not a folder; give a folder with one sub-folder per domain")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UsageError(f"--data {data} has no sub-folders; put each domain's files in a sub-folder of its own")
    domains = [_discover_files(folder) for folder in folders]
    if len(domains) < 2:
        raise UsageError(f"--data {data} has one domain only ({domains[0].name}); a mixture needs at least two")
    return domains


def _discover_files(folder: Path) -> DomainFiles:
    files = sorted(path for path in folder.iterdir() if path.is_file() and _kind(path) is not None)
    by_stem = {stem: [path for path in files if path.name.lower().startswith(stem)] for stem in _VALIDATION_STEMS}
    validation = next((found for found in by_stem.values() if found), [])
    held_out = {path for found in by_stem.values() for path in found}
    train = [path for path in files if path not in held_out]
    if not train:
        raise UsageError(
            f"domain {folder.name} has no training file in {folder}; acodm reads .jsonl, .parquet and .txt "
            "(also .gz and .zst)"
        )
    return DomainFiles(folder.name, tuple(train), tuple(validation))


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes = suffixes[:-1]
    last = suffixes[-1] if suffixes else ""
    if last in _JSON:
        return "json"
    if last in _TEXT:
        return "text"
    return "parquet" if last == ".parquet" else None


def read_documents(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """The documents of one file, in order. on_bytes: told how many bytes of the file were read since last time.

    Raises:
        UsageError: a record that is not valid, with file and line or row.
    """
    kind = _kind(path)
    assert kind is not None
    if kind == "parquet":
        yield from _read_parquet(path, on_bytes)
        return
    try:
        with path.open("rb") as file:
            counted = _Counted(file, on_bytes)
            with _decompressed(path, counted) as stream:
                if kind == "text":
                    yield _decode(stream.read(), path, None)
                else:
                    yield from _read_json_lines(path, stream)
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


def _read_json_lines(path: Path, stream: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(_decode(line, path, number))
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not valid JSON ({error}); repair or remove the line") from None
        except RecursionError:
            raise UsageError(f"{path}:{number}: JSON is nested too deeply; repair or remove the line") from None
        if not isinstance(record, dict) or not isinstance(record.get(TEXT_FIELD), str):
            raise UsageError(f'{path}:{number}: no text in field "{TEXT_FIELD}"; every record needs one')
        yield record[TEXT_FIELD]


def _read_parquet(path: Path, on_bytes: Callable[[int], None]) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            if TEXT_FIELD not in file.schema_arrow.names:
                raise UsageError(
                    f'{path}: no column "{TEXT_FIELD}"; its columns are {", ".join(file.schema_arrow.names)}'
                )
            size = path.stat().st_size
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[TEXT_FIELD]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        raise UsageError(f'{path}: row {row} has no text in column "{TEXT_FIELD}"')
                    yield text
                    row += 1
                on_bytes(size * len(batch) // max(file.metadata.num_rows, 1))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _decode(data: bytes, path: Path, line: int | None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{path}:{line}" if line else f"{path}: byte {error.start}"
        raise UsageError(f"{where}: not UTF-8; convert the file to UTF-8") from None
