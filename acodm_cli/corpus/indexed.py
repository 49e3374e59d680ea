"""Opens tokens of Megatron-LM and GPT-NeoX: a .bin file of token ids, and a .idx file that says where documents begin.

The pre-tokenised Pile corpora for Pythia have this format. Files are memory-mapped where they lie: nothing is copied.

A .idx file is little-endian: `MMIDIDX\\0\\0`, version u64 = 1, type code u8, number of sequences S u64, number of
document bounds D u64, then S lengths i32 in tokens, S offsets i64 in bytes, D document bounds i64 in sequences.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acodm_cli.errors import UsageError

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
# Up to this size, all token ids are checked, and all go into the key; beyond it, only samples do.
_CHECKED_TOKENS = 1 << 30
_PIECE = 1 << 20
_SAMPLES = 256


@dataclass(frozen=True)
class IndexedTokens:
    """An open .bin file. path: its path. tokens: all its token ids. ends: where each sequence ends, in tokens."""

    path: Path
    tokens: NDArray[np.integer]
    ends: NDArray[np.int64]


def open_indexed(path: Path, vocab_size: int) -> IndexedTokens:
    """Opens and checks a .bin file and its .idx file. path: the path of both, without .bin and .idx.

    Raises:
        UsageError: a file is missing, damaged, of another format, or holds ids that the tokenizer does not have.
    """
    binary, index = path.with_name(path.name + ".bin"), path.with_name(path.name + ".idx")
    try:
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
        index_size, binary_size = index.stat().st_size, binary.stat().st_size
    except OSError as error:
        raise UsageError(
            f"{error.filename}: cannot be read ({error.strerror}); a .bin needs its .idx beside it"
        ) from None
    if len(header) < _HEADER.size or header[:9] != _MAGIC:
        raise UsageError(f"{index}: not an index of Megatron-LM or GPT-NeoX (MMIDIDX); make it again")
    _, version, code, num_sequences, num_bounds = _HEADER.unpack(header)
    if version != 1 or code not in _TYPES:
        raise UsageError(
            f"{index}: version {version} with type code {code} is not supported; tokens must be whole numbers"
        )
    dtype = np.dtype(_TYPES[code])
    # Newer writers may append more after the document bounds.
    if num_sequences < 1 or index_size < _HEADER.size + 12 * num_sequences + 8 * num_bounds:
        raise UsageError(f"{index}: damaged or truncated ({num_sequences} sequences do not fit in it); fetch it again")
    lengths = np.memmap(index, np.int32, "r", _HEADER.size, (num_sequences,))
    ends = np.cumsum(lengths, dtype=np.int64)
    if lengths.min() < 0 or ends[-1] < 1 or ends[-1] * dtype.itemsize != binary_size:
        raise UsageError(f"{binary}: {binary_size} bytes, its index says {ends[-1] * dtype.itemsize}; fetch both again")
    tokens: NDArray[np.integer] = np.memmap(binary, dtype, "r")
    stride = _PIECE if len(tokens) <= _CHECKED_TOKENS else max(_PIECE, len(tokens) // _SAMPLES)
    for first in range(0, len(tokens), stride):
        piece = np.array(tokens[first : first + _PIECE])
        if int(piece.max()) >= vocab_size or int(piece.min()) < 0:
            raise UsageError(
                f"{binary}: holds token ids such as {int(piece.max())}, the tokenizer has {vocab_size}; give the --tokenizer it "
                "was made with"
            )
    return IndexedTokens(binary, tokens, ends)


def content_key(path: Path, dtype: np.dtype, start: int = 0, stop: int | None = None) -> str:
    """A hash of the token ids [start, stop) of a file, whatever type they are stored in. stop: None for its end.

    The file is read piece by piece, because pages of a memory-map, once touched, count as this process's memory.
    """
    stop = path.stat().st_size // dtype.itemsize if stop is None else stop
    digest = hashlib.sha256(str(stop - start).encode())
    whole = stop - start <= _CHECKED_TOKENS
    with path.open("rb") as file:
        for first in range(start, stop, _PIECE if whole else max(_PIECE, (stop - start) // _SAMPLES)):
            file.seek(first * dtype.itemsize)
            piece = np.fromfile(file, dtype, min(_PIECE, stop - first))
            digest.update(piece.astype(np.uint32).tobytes())
    return digest.hexdigest()
