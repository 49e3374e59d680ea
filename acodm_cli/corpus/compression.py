"""Opens compressed files as streams of bytes. What a damaged or hostile archive can make them use of memory is bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import IO, Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A window of 2 GiB, which `zstd --long=31` writes, is the largest there is; xz dictionaries may be larger.
_ZSTD_WINDOW_LOG = 31
_XZ_MEMORY = 2 << 30
_PIECE = 1 << 18

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
    return io.BufferedReader(_Archives(raw, bz2.BZ2Decompressor))


def _xz(raw: io.RawIOBase) -> IO[bytes]:
    return io.BufferedReader(_Archives(raw, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)))


class _Archives(io.RawIOBase):
    """Reads archives that follow each other. `bz2.BZ2File` passes over what it cannot read behind the first, and
    `lzma.LZMAFile` takes no limit of memory."""

    def __init__(self, raw: io.RawIOBase, decoder: Callable[[], Any]) -> None:
        self.raw = raw
        self.new_decoder = decoder
        self.decoder = decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            data = b""
            if self.decoder.eof:  # another archive may follow, and zeros may stand between them
                data = self.decoder.unused_data.lstrip(b"\0")
                while not data:
                    read = self.raw.read(_PIECE)
                    if not read:
                        return 0
                    data = read.lstrip(b"\0")
                self.decoder = self.new_decoder()
            elif self.decoder.needs_input:
                data = self.raw.read(_PIECE) or b""
                if not data:
                    raise EOFError("the archive ends before its end marker")
            try:
                found = self.decoder.decompress(data, len(buffer))
            except OSError as error:  # what bz2 raises of damaged data
                raise EOFError(str(error)) from None
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
