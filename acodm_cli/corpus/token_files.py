"""Opens tokens that other tools have written. Files are memory-mapped where they lie: nothing is copied.

| file | written by | documents end |
|---|---|---|
| `.bin` with `.idx` | Megatron-LM, GPT-NeoX (the pre-tokenised Pile of Pythia) | where the index says |
| `.ds`, mostly with `.ds.index` and `.ds.metadata` | datatrove, nanotron | where the index says |
| `.npy` without a header, or as NumPy writes it | OLMo, dolma | at the end-of-document token |

A .idx file is little-endian: `MMIDIDX\\0\\0`, version u64 = 1, type code u8, number of sequences S u64, number of
document bounds D u64, then S lengths i32 in tokens, S offsets i64 in bytes, D document bounds i64 in sequences.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from acodm_cli.corpus.readers import check_fetched
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import UsageError
from acodm_cli.writing import in_short

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_NUMPY_MAGIC = b"\x93NUMPY"
# Up to this size, all token ids are checked, and all go into the key; beyond it, only samples do.
_CHECKED_TOKENS = 1 << 30
_PIECE = 1 << 20
_SAMPLES = 256
_SAMPLED_DOCUMENTS = 1000
# Files without an index are searched for ends of documents up to this size; beyond it, only their last tokens are.
_SEARCHED_TOKENS = 1 << 28
_SEARCHED_AT_END = 1 << 22


@dataclass(frozen=True)
class TokenFile:
    """Token ids [offset, offset + length) of a file, counted in tokens from `start` bytes on."""

    path: Path
    dtype: np.dtype
    start: int
    offset: int
    length: int

    def part(self, first: int, length: int) -> TokenFile:
        """Returns some of these tokens. first: from the first of them."""
        return replace(self, offset=self.offset + first, length=length)

    def mapped(self) -> NDArray[np.integer]:
        """The tokens, memory-mapped."""
        return mapped(self.path, self.dtype, self.start)[self.offset : self.offset + self.length]

    def read(self, first: int, length: int) -> NDArray[np.integer]:
        """A copy of some tokens. Pages of a memory-map, once touched, would count as this process's memory."""
        place = self.start + (self.offset + first) * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, min(length, self.length - first), offset=place)


def mapped(path: Path, dtype: np.dtype, start: int = 0) -> NDArray:
    """Memory-maps a file from `start` bytes on. Unlike np.memmap, this keeps no file open, so there may be thousands.

    Raises:
        OSError: the file cannot be opened.
    """
    size = path.stat().st_size - start
    if size < dtype.itemsize:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
    return np.frombuffer(buffer, dtype, count=size // dtype.itemsize, offset=start)


def open_tokens(path: Path, tokenizer: Tokenizer) -> TokenFile:
    """Opens and checks a file of tokens.

    Raises:
        UsageError: a file is missing, damaged, of another format, or holds ids that the tokenizer does not have.
    """
    try:
        check_fetched(path)
        found = {".bin": _open_indexed, ".npy": _open_numpy, ".ds": _open_datatrove}[path.suffix](path, tokenizer)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({in_short(error)})") from None
    if found.length < 1:
        raise UsageError(f"{path}: holds no tokens; remove it, or make it again")
    _check_ids(found, tokenizer.vocab_size)
    return found


def _check_ids(file: TokenFile, vocab_size: int) -> None:
    stride = _PIECE if file.length <= _CHECKED_TOKENS else max(_PIECE, file.length // _SAMPLES)
    for first in range(0, file.length, stride):
        piece = file.read(first, _PIECE)
        if int(piece.max()) >= vocab_size or int(piece.min()) < 0:
            raise UsageError(
                f"{file.path}: holds token ids such as {int(piece.max())}, the tokenizer has {vocab_size}; give the --tokenizer "
                "it was made with"
            )
        if file.dtype.itemsize == 2 and first == 0 and len(piece) > 64 and not piece[1::2].any() and piece[::2].any():
            raise UsageError(
                f"{file.path}: its ids seem to take 4 bytes each, not 2; give the --tokenizer it was made with"
            )


def _open_indexed(path: Path, tokenizer: Tokenizer) -> TokenFile:
    index, binary_size = path.with_suffix(".idx"), path.stat().st_size
    dtype, lengths, _ = _read_index(index)
    total = int(lengths.sum(dtype=np.int64))
    if lengths.min() < 0 or total * dtype.itemsize != binary_size:
        raise UsageError(f"{path}: {binary_size} bytes, its index says {total * dtype.itemsize}; fetch both again")
    return TokenFile(path, dtype, 0, 0, total)


def _read_index(index: Path) -> tuple[np.dtype, NDArray[np.int32], NDArray[np.int64]]:
    """Returns (type of the ids, lengths of sequences in tokens, bounds of documents in sequences) of a .idx file."""
    try:
        if index.exists() and not index.is_file():
            raise UsageError(f"{index}: not a file; a .bin needs its .idx beside it")
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
        size = index.stat().st_size
    except OSError as error:
        raise UsageError(f"{index}: cannot be read ({error.strerror}); a .bin needs its .idx beside it") from None
    if len(header) < _HEADER.size or header[:9] != _MAGIC:
        raise UsageError(f"{index}: not an index of Megatron-LM or GPT-NeoX (MMIDIDX); make it again")
    _, version, code, num_sequences, num_bounds = _HEADER.unpack(header)
    if version != 1 or code not in _TYPES:
        raise UsageError(
            f"{index}: version {version} with type code {code} is not supported; tokens must be whole numbers"
        )
    # Newer writers may append more after the document bounds.
    if num_sequences < 1 or size < _HEADER.size + 12 * num_sequences + 8 * num_bounds:
        raise UsageError(f"{index}: damaged or truncated ({num_sequences} sequences do not fit in it); fetch it again")
    whole = mapped(index, np.dtype(np.uint8), _HEADER.size)
    lengths = whole[: 4 * num_sequences].view("<i4")
    bounds = whole[12 * num_sequences : 12 * num_sequences + 8 * num_bounds].view("<i8")
    return np.dtype(_TYPES[code]), lengths, bounds


def _open_numpy(path: Path, tokenizer: Tokenizer) -> TokenFile:
    with path.open("rb") as file:
        if file.read(len(_NUMPY_MAGIC)) != _NUMPY_MAGIC:
            return _raw(path, _bytes_of_ids(tokenizer))
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except (ValueError, SyntaxError, RecursionError) as error:
            raise UsageError(f"{path}: not a readable .npy file ({in_short(error)}); make it again") from None
        if len(shape) != 1 or dtype.kind not in "iu":
            raise UsageError(
                f"{path}: an array of {dtype} with {len(shape)} dimensions; tokens are one row of whole numbers"
            )
        start = file.tell()
    if path.stat().st_size < start + shape[0] * dtype.itemsize:
        raise UsageError(f"{path}: truncated ({shape[0]} tokens do not fit in it); fetch it again")
    return TokenFile(path, dtype, start, 0, shape[0])


def _open_datatrove(path: Path, tokenizer: Tokenizer) -> TokenFile:
    size = _bytes_of_ids(tokenizer)
    metadata = path.with_name(path.name + ".metadata")
    if metadata.is_file():  # its first line ends with the bytes per id, as in `gpt2|2`
        with metadata.open("rb") as file:
            said = file.read(4096).split(b"\n")[0].rpartition(b"|")[2].strip()
        size = int(said) if said in (b"2", b"4") else size
    return _raw(path, size)


def _bytes_of_ids(tokenizer: Tokenizer) -> int:
    """How many bytes an id takes in files that do not say it."""
    return 2 if tokenizer.vocab_size <= 1 << 16 else 4


def _raw(path: Path, bytes_of_ids: int) -> TokenFile:
    size = path.stat().st_size
    if size % bytes_of_ids:
        raise UsageError(f"{path}: {size} bytes are not a whole number of ids of {bytes_of_ids} bytes; fetch it again")
    return TokenFile(path, np.dtype(f"<u{bytes_of_ids}"), 0, 0, size // bytes_of_ids)


# Documents


@dataclass(frozen=True)
class Ends:
    """Where the documents of a whole file end. ends_N: in tokens. complete: whether these are all of them."""

    ends_N: NDArray[np.int64]
    complete: bool = True


def document_ends(file: TokenFile, tokenizer: Tokenizer) -> Ends:
    """Finds where the documents of a whole file end.

    Raises:
        UsageError: the index of the file does not fit it.
    """
    index = file.path.with_name(file.path.name + ".index")
    if file.path.suffix == ".bin":
        _, lengths, bounds = _read_index(file.path.with_suffix(".idx"))
        ends_N = np.cumsum(lengths, dtype=np.int64)
        # Where documents were cut into sentences, sequences are sentences, and the bounds say which are one document.
        if len(bounds) > 1 and bounds[0] == 0 and bounds[-1] == len(ends_N) and (np.diff(bounds) > 0).all():
            ends_N = ends_N[bounds[1:] - 1]
        return Ends(ends_N)
    if file.path.suffix == ".ds" and index.is_file():
        ends_N = mapped(index, np.dtype("<u8")).astype(np.int64)
        if len(ends_N) and ends_N[-1] == file.length and (np.diff(ends_N, prepend=0) >= 0).all():
            return Ends(ends_N)
        raise UsageError(f"{index}: does not fit its .ds file; fetch both again")
    complete = file.length <= _SEARCHED_TOKENS
    found = [
        first + 1 + np.flatnonzero(file.read(first, _PIECE) == tokenizer.end_of_document)
        for first in range(0 if complete else file.length - _SEARCHED_AT_END, file.length, _PIECE)
    ]
    ends_N = np.concatenate(found)
    return Ends(ends_N if len(ends_N) and ends_N[-1] == file.length else np.append(ends_N, file.length), complete)


def unended(file: TokenFile, ends_N: NDArray[np.int64], tokenizer: Tokenizer) -> tuple[float, str]:
    """How large a share of a file's documents does not end with the end-of-document token, and what most of them end with.

    Only samples are looked at."""
    sampled = np.unique(np.linspace(0, len(ends_N) - 1, _SAMPLED_DOCUMENTS).astype(np.int64))
    last = np.array([int(file.read(int(end) - 1, 1)[0]) for end in ends_N[sampled] if end > 0], dtype=np.int64)
    if not len(last):
        return 0.0, ""
    values, counts = np.unique(last, return_counts=True)
    most = int(values[counts.argmax()])
    common = str(tokenizer.backend.id_to_token(most)) if counts.max() > 0.9 * len(last) else ""
    return float((last != tokenizer.end_of_document).mean()), common


def content_key(parts: Sequence[TokenFile]) -> str:
    """A hash of the token ids of several files, one after the other, whatever type they are stored in."""
    total = sum(part.length for part in parts)
    digest = hashlib.sha256(str(total).encode())
    stride = _PIECE if total <= _CHECKED_TOKENS else max(_PIECE, total // _SAMPLES)
    starts = np.cumsum([0, *(part.length for part in parts)])
    for first in range(0, total, stride):
        last, at = min(first + _PIECE, total), first
        while at < last:  # a sample may lie in several files
            number = int(np.searchsorted(starts, at, "right")) - 1
            piece = parts[number].read(at - int(starts[number]), last - at)
            digest.update(piece.astype(np.uint32).tobytes())
            at += len(piece)
    return digest.hexdigest()
