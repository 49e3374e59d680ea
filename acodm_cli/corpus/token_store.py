"""Token stores: a domain's tokens on disk, memory-mapped, made once per content and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus.sources import DomainFiles, read_documents
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import AcodmError, UsageError

STORE_VERSION = 1
HOLD_OUT_EVERY = 20
_ENCODE_CHARACTERS = 1 << 22

# name of the domain, bytes of its files read so far, bytes of all its files
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TokenStore:
    """One split of one domain as a stream of token ids, documents separated by the end-of-document token.

    Sequence k is tokens [k·T, k·T + T]: T inputs and, shifted by one, T labels. Sequences cross document borders.
    """

    tokens: NDArray[np.uint16] | NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.tokens)

    def num_sequences(self, seq_len: int) -> int:
        return (len(self.tokens) - 1) // seq_len

    def sequence(self, index: int, seq_len: int) -> NDArray[np.int64]:
        start = index * seq_len
        return self.tokens[start : start + seq_len + 1].astype(np.int64)


@dataclass(frozen=True)
class DomainStore:
    name: str
    train: TokenStore
    validation: TokenStore
    key: str


def open_domain(files: DomainFiles, tokenizer: Tokenizer, cache: Path, on_progress: OnProgress) -> DomainStore:
    """A domain's stores out of the cache, tokenised first if they are not there.

    The key is the content of the files and the tokenizer, so that a changed file is tokenised again. Written in a
    folder of its own that is renamed when complete: two processes may prepare the same domain at once.

    Raises:
        UsageError: a document that cannot be read. The cache is left as it was.
    """
    key = _content_key(files, tokenizer)
    folder = cache / "tokens" / key
    if not (folder / "index.json").is_file():
        _tokenize(files, tokenizer, folder, on_progress)
    index = json.loads((folder / "index.json").read_text())
    stores = {}
    for split in ("train", "validation"):
        path = folder / f"{split}.bin"
        dtype = np.dtype(index["dtype"])
        expected = index[split] * dtype.itemsize
        if not path.is_file() or path.stat().st_size != expected:
            raise AcodmError(f"the token cache {folder} is damaged; remove it, and it will be made again")
        # An empty file cannot be memory-mapped.
        stores[split] = TokenStore(np.memmap(path, dtype, mode="r") if expected else np.zeros(0, dtype))
    return DomainStore(files.name, stores["train"], stores["validation"], key)


def _content_key(files: DomainFiles, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(f"{STORE_VERSION} {tokenizer.fingerprint} {tokenizer.end_of_document}".encode())
    for split, paths in (("train", files.train), ("validation", files.validation)):
        for path in paths:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
            suffixes = "".join(path.suffixes)
            digest.update(f" {split} {suffixes} {content}".encode())
    return digest.hexdigest()[:24]


def _tokenize(files: DomainFiles, tokenizer: Tokenizer, folder: Path, on_progress: OnProgress) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with (partial / "train.bin").open("wb") as train, (partial / "validation.bin").open("wb") as validation:
            hold_out = not files.validation
            on_bytes = _byte_counter(files, on_progress)
            train_documents = (text for path in files.train for text in read_documents(path, on_bytes))
            _write_documents(train_documents, tokenizer, dtype, train, validation if hold_out else None)
            validation_documents = (text for path in files.validation for text in read_documents(path, on_bytes))
            _write_documents(validation_documents, tokenizer, dtype, validation, None)
        if hold_out:
            _ensure_hold_out(partial, dtype)
        counts = {s: (partial / f"{s}.bin").stat().st_size // dtype.itemsize for s in ("train", "validation")}
        (partial / "index.json").write_text(json.dumps(counts | {"dtype": dtype.name, "version": STORE_VERSION}))
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "index.json").is_file():  # else another process was faster with the same content
                raise
    except OSError as error:
        raise AcodmError(
            f"cannot write the token cache in {folder.parent}: {error.strerror}; use --cache-dir"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _byte_counter(files: DomainFiles, on_progress: OnProgress) -> Callable[[int], None]:
    total = sum(path.stat().st_size for path in files.train + files.validation)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(files.name, min(done, total), total)

    return on_bytes


def _write_documents(
    documents: Iterator[str], tokenizer: Tokenizer, dtype: np.dtype, out: BinaryIO, held_out: BinaryIO | None
) -> None:
    """Tokenised documents to `out`, or every HOLD_OUT_EVERY-th one to `held_out`."""
    number = 0
    for texts in _in_batches(documents):
        for encoding in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False):
            number += 1
            into = held_out if held_out is not None and number % HOLD_OUT_EVERY == 0 else out
            np.array([*encoding.ids, tokenizer.end_of_document], dtype=dtype).tofile(into)


def _in_batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Batches large enough for the tokenizer's threads, and bounded in memory."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= _ENCODE_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _ensure_hold_out(folder: Path, dtype: np.dtype) -> None:
    """With too few documents to hold some out, hold out the end of the stream instead."""
    if (folder / "validation.bin").stat().st_size:
        return
    tokens = np.fromfile(folder / "train.bin", dtype)
    cut = len(tokens) - len(tokens) // HOLD_OUT_EVERY
    tokens[cut:].tofile(folder / "validation.bin")
    os.truncate(folder / "train.bin", cut * dtype.itemsize)
