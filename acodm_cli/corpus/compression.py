"""Opens compressed files as streams of bytes. What a damaged or hostile archive can make them use of memory is bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import IO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A window of 2 GiB, which `zstd --long=31` writes, is the largest there is; xz dictionaries may be larger.
_ZSTD_WINDOW_LOG = 31
_XZ_MEMORY = 2 << 30
_XZ_PIECE = 1 << 18

# What the streams raise when an archive is damaged or ends early.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError)


def _plain(raw: io.RawIOBase) -> IO[bytes]:
    return io.BufferedReader(raw)


def _gzip(raw: io.RawIOBase) -> IO[bytes]:
    return io.BufferedReader(gzip.GzipFile(fileobj=io.BufferedReader(raw), mode="rb"))


def _zstd(raw: io.RawIOBase) -> IO[bytes]:
    options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
    return io.BufferedReader(zstd.ZstdFile(io.BufferedReader(raw), options=options))


def _bz2(raw: io.RawIOBase) -> IO[bytes]:
    return io.BufferedReader(bz2.BZ2File(io.BufferedReader(raw)))


def _xz(raw: io.RawIOBase) -> IO[bytes]:
    return io.BufferedReader(_XzReader(raw))


class _XzReader(io.RawIOBase):
    """Reads .xz as `lzma.LZMAFile` does, but with a limit on memory, which that class does not take."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw
        self.decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            data = b""
            if self.decoder.eof:  # another archive may follow, and zeros may stand between them
                data = self.decoder.unused_data.lstrip(b"\0")
                while not data:
                    read = self.raw.read(_XZ_PIECE)
                    if not read:
                        return 0
                    data = read.lstrip(b"\0")
                self.decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            elif self.decoder.needs_input:
                data = self.raw.read(_XZ_PIECE) or b""
                if not data:
                    raise EOFError("the archive ends before its end marker")
            found = self.decoder.decompress(data, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)


# By the last ending of a file's name; a new compression is a new line.
COMPRESSIONS: dict[str, Callable[[io.RawIOBase], IO[bytes]]] = {
    "": _plain,
    ".gz": _gzip,
    ".zst": _zstd,
    ".zstd": _zstd,
    ".xz": _xz,
    ".bz2": _bz2,
}
