"""Token stores keep a domain's tokens on disk, memory-mapped. They are made once per content and tokenizer.

    documents -> batches -> tokenizer (all cores) -> cache/tokens/<key>/<n>.train.bin, <n>.validation.bin, index.json

Reading and writing run in threads beside the tokenizer, which does not hold Python's lock while it works.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus import hub
from acodm_cli.corpus.indexed import content_key, open_indexed
from acodm_cli.corpus.readers import Document, read_documents
from acodm_cli.corpus.sources import FileSource, HubSource, IndexedSource, Source
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import atomic_folder, cache_errors

STORE_VERSION = 4
HOLD_OUT_EVERY = 20
# At most so many tokens are held out at the end of a stream that cannot be copied; a long document may double them.
HOLD_OUT_TOKENS = 1_000_000
MAX_DOMAINS = 1000
SPLITS = ("train", "validation")
_ENCODE_CHARACTERS = 1 << 21
_ABANDONED_SECONDS = 24 * 3600
# A hub stream ends when so many documents in a row belonged to domains whose budget is used up.
_PATIENCE = 1_000_000

# It is told what is read (a domain, or files of several), how far, and of how much (bytes, or tokens of a budget; 0 for
# an unknown amount).
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TokenStore:
    """One split of one domain as a stream of token ids, in which the end-of-document token separates documents.

    Sequence k is tokens [k·T, k·T + T]: T inputs and, shifted by one, T labels. Sequences cross document borders.
    """

    tokens: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.tokens)

    def num_sequences(self, seq_len: int) -> int:
        """The number of whole sequences with T = seq_len."""
        return max(0, len(self.tokens) - 1) // seq_len

    def sequence(self, index: int, seq_len: int) -> NDArray[np.int64]:
        """The token ids of sequence `index` with T = seq_len. [T + 1]"""
        start = index * seq_len
        return self.tokens[start : start + seq_len + 1].astype(np.int64)


@dataclass(frozen=True)
class DomainStore:
    """The tokens of one domain. key: a hash of the tokens of both splits, wherever they come from."""

    name: str
    train: TokenStore
    validation: TokenStore
    key: str


def open_source(source: Source, tokenizer: Tokenizer, cache: Path, on_progress: OnProgress) -> list[DomainStore]:
    """Opens the stores of a source's domains in the cache, in order of name. It makes them first if they are not there.

    The key in the cache is a hash of the source's content and the tokenizer, so that a changed file is tokenised again.
    Stores are written in a folder of their own, which is renamed when complete: two processes may prepare the same
    source at once.

    Raises:
        UsageError: a document cannot be read, or a domain has no text. The cache is left as it was.
        AcodmError: the cache cannot be written, or is damaged.
    """
    if isinstance(source, IndexedSource):
        return [_open_indexed_source(source, tokenizer)]
    if isinstance(source, HubSource):
        source = hub.pinned(source, cache)
    key = _source_key(source, tokenizer)
    folder = cache / "tokens" / key
    if not folder.is_dir():
        _tokenize(source, tokenizer, folder, on_progress)
    return _open_folder(folder, source.domain)


def _open_folder(folder: Path, name: str | None) -> list[DomainStore]:
    """Opens the stores in a folder of the cache. name: the domain's name, if the stores were written without one."""
    stores = []
    try:
        index = json.loads((folder / "index.json").read_text())
        dtype = np.dtype(index["dtype"])
        for number, entry in enumerate(index["domains"]):
            splits = {}
            for split in SPLITS:
                path = folder / f"{number}.{split}.bin"
                # An empty file cannot be memory-mapped.
                splits[split] = np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
            if _content_of(folder, number, dtype) != entry["content"]:
                raise ValueError
            stores.append(
                DomainStore(
                    name or entry["name"],
                    TokenStore(splits["train"]),
                    TokenStore(splits["validation"]),
                    _key(entry["content"]),
                )
            )
    except (OSError, ValueError, KeyError, TypeError):
        raise AcodmError(f"the token cache {folder} is damaged; remove it, and it will be made again") from None
    return stores


def _content_of(folder: Path, number: int, dtype: np.dtype) -> str:
    return "".join(content_key(folder / f"{number}.{split}.bin", dtype) for split in SPLITS)


def _key(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _open_indexed_source(source: IndexedSource, tokenizer: Tokenizer) -> DomainStore:
    train = open_indexed(source.train, tokenizer.vocab_size)
    if source.validation is not None:
        validation = open_indexed(source.validation, tokenizer.vocab_size)
        tokens, held_out = train.tokens, validation.tokens
        held_out_key = content_key(validation.path, held_out.dtype)
    else:
        total = len(train.tokens)
        least = total - min(total // HOLD_OUT_EVERY, HOLD_OUT_TOKENS)
        # The cut is where the last document before `least` ends. If the held-out split would then be more than twice as
        # large as wanted, the cut is at `least`.
        before = train.ends[np.searchsorted(train.ends, least, "right") - 1] if train.ends[0] <= least else 0
        before = before if total - before <= 2 * (total - least) else least
        tokens, held_out = train.tokens[:before], train.tokens[before:]
        held_out_key = content_key(train.path, held_out.dtype, len(tokens))
    key = _key(content_key(train.path, tokens.dtype, 0, len(tokens)) + held_out_key)
    return DomainStore(source.domain, TokenStore(tokens), TokenStore(held_out), key)


def _source_key(source: FileSource | HubSource, tokenizer: Tokenizer) -> str:
    """A hash of the content, not of the names of files or domain: a renamed folder is not tokenised again."""
    digest = hashlib.sha256(f"{STORE_VERSION} {tokenizer.fingerprint} {tokenizer.end_of_document}".encode())
    digest.update(repr(source.fields).encode())
    if isinstance(source, HubSource):
        digest.update(repr((hub.identity(source), source.tokens, source.domain is None)).encode())
        return digest.hexdigest()[:24]
    for split, paths in (("train", source.train), ("validation", source.validation)):
        for path in paths:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
            digest.update(f" {split} {''.join(path.suffixes)} {content}".encode())
    return digest.hexdigest()[:24]


# Tokenising


def _tokenize(source: FileSource | HubSource, tokenizer: Tokenizer, folder: Path, on_progress: OnProgress) -> None:
    with cache_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(folder.parent)
        with atomic_folder(folder, existing="keep") as partial:
            writer = _StoreWriter(partial, tokenizer)
            try:
                if isinstance(source, FileSource):
                    _write_files(source, tokenizer, writer, on_progress)
                else:
                    _write_stream(source, tokenizer, writer, on_progress)
                writer.finish(source.domain)
            finally:
                writer.thread.shutdown()  # the thread must end before its folder is renamed or removed


def _remove_left_over(cache: Path) -> None:
    """Removes what killed processes have left behind. A process that is still at work has written recently."""
    for path in cache.glob(".*"):
        if path.is_dir() and time.time() - max(p.stat().st_mtime for p in (path, *path.iterdir())) > _ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _write_files(source: FileSource, tokenizer: Tokenizer, writer: _StoreWriter, on_progress: OnProgress) -> None:
    total = sum(path.stat().st_size for path in source.train + source.validation)
    label = source.domain or ", ".join(sorted({path.parent.name for path in source.train}))
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(label, min(done, total), total)

    for split, paths in (("train", source.train), ("validation", source.validation)):
        documents = (document for path in paths for document in read_documents(path, source.fields, on_bytes))
        hold_out = split == "train" and not source.validation
        for batch in encoded(documents, tokenizer):
            writer.add(batch, split, hold_out)


def _write_stream(source: HubSource, tokenizer: Tokenizer, writer: _StoreWriter, on_progress: OnProgress) -> None:
    """Writes the documents of a hub dataset. A domain whose budget is used up takes no more; the stream ends when
    nothing new can be expected of it."""
    documents = hub.HubDocuments(source)
    validation = documents.validation_split
    for split, of_dataset in (("train", source.split), ("validation", validation)):
        if of_dataset is None:
            continue
        budget = source.tokens if split == "train" else source.tokens and max(1, source.tokens // HOLD_OUT_EVERY)
        # A dataset of one domain is done when that domain's budget is used up; in others, new domains may still come.
        patience = 1 if source.domain else _PATIENCE
        wanted = _until_done(documents.read(of_dataset), writer, split, budget)
        for batch in encoded(wanted, tokenizer):
            writer.add(batch, split, split == "train" and validation is None, budget, patience)
            counts = [d.tokens[split] for d in list(writer.domains.values())]  # the writer's thread adds to them
            on_progress(source.dataset, sum(min(c, budget or c) for c in counts), (budget or 0) * len(counts))


def _until_done(
    documents: Iterator[Document], writer: _StoreWriter, split: str, budget: int | None
) -> Iterator[Document]:
    """Yields documents until the writer needs no more. Those that it has no use for are yielded without text, so that
    nothing of them is tokenised.

    The writer, which sees documents in order, decides what is stored. How far it lags behind this reader is a matter of
    chance, so only the amount of wasted work may depend on that.
    """
    for document in documents:
        if split in writer.done:
            return
        domain = writer.domains.get(document.domain or "")
        full = budget is not None and domain is not None and domain.tokens[split] >= budget
        yield replace(document, text="") if full else document


def encoded(documents: Iterator[Document], tokenizer: Tokenizer) -> Iterator[list[tuple[str, list[int]]]]:
    """Yields batches of (domain, token ids). A thread reads documents ahead, in batches that feed the tokenizer's
    threads and bound the memory."""
    with _Prefetched(_in_batches(documents)) as batches:
        for batch in batches:
            encodings = tokenizer.backend.encode_batch_fast([d.text for d in batch], add_special_tokens=False)
            yield [(d.domain or "", encoding.ids) for d, encoding in zip(batch, encodings, strict=True)]


def _in_batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _ENCODE_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Prefetched:
    """Runs an iterator in a thread, two items ahead. The iterator's errors are raised where its items are taken."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items
        self.queue: queue.Queue[tuple[Any, BaseException | None] | None] = queue.Queue(2)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            for item in self.items:
                if not self._put((item, None)):
                    return
            self._put(None)
        except BaseException as error:
            self._put((None, error))

    def _put(self, value: tuple[Any, BaseException | None] | None) -> bool:
        while not self.stopped.is_set():
            try:
                self.queue.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __enter__(self) -> Iterator[Any]:
        self.thread.start()
        return self._take()

    def _take(self) -> Iterator[Any]:
        while (value := self.queue.get()) is not None:
            item, error = value
            if error is not None:
                raise error
            yield item

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.thread.join(timeout=1)  # it may still wait for the network, but a daemon does not keep the process alive


@dataclass
class _DomainFiles:
    number: int
    hold_out: bool = False
    documents: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))


class _StoreWriter:
    """Appends token ids to the files of their domains, in a thread, in order."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.end = tokenizer.end_of_document
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self.domains: dict[str, _DomainFiles] = {}
        self.useless = 0
        self.done: set[str] = set()
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def add(
        self,
        batch: list[tuple[str, list[int]]],
        split: str,
        hold_out: bool,
        budget: int | None = None,
        patience: int = 1,
    ) -> None:
        """Hands a batch to the thread. hold_out: whether every HOLD_OUT_EVERY-th document of a domain goes to
        validation. budget: the tokens after which a domain takes no more. patience: after so many documents in a row
        that were not taken, the split is done."""
        self.wait()
        self.pending = self.thread.submit(self._write, batch, split, hold_out, budget, patience)

    def wait(self) -> None:
        """Waits until the last batch is written, and raises the thread's error if it could not be."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(
        self, batch: list[tuple[str, list[int]]], split: str, hold_out: bool, budget: int | None, patience: int
    ) -> None:
        parts: dict[tuple[str, str], list[NDArray[np.integer]]] = {}
        end = np.array([self.end], self.dtype)
        for name, ids in batch:
            if split in self.done:
                break
            domain = self.domains.get(name)
            if domain is None:
                if len(self.domains) == MAX_DOMAINS:
                    raise UsageError(
                        f"more than {MAX_DOMAINS} domains, such as {', '.join(map(repr, list(self.domains)[:3]))}; is this "
                        "the right --domain-field?"
                    )
                domain = self.domains[name] = _DomainFiles(len(self.domains))
            if budget is not None and domain.tokens[split] >= budget:
                self.useless += 1
                if self.useless >= patience:
                    self.done.add(split)
                continue
            self.useless = 0
            domain.hold_out |= hold_out
            domain.documents += 1
            into = "validation" if hold_out and domain.documents % HOLD_OUT_EVERY == 0 else split
            domain.tokens[into] += len(ids) + 1
            parts.setdefault((name, into), []).extend((np.array(ids, self.dtype), end))
        for (name, into), arrays in parts.items():
            with self._path(self.domains[name], into).open("ab") as file:
                file.write(np.concatenate(arrays).data)  # tofile does not report a disk that is full at its last flush

    def _path(self, domain: _DomainFiles, split: str) -> Path:
        return self.folder / f"{domain.number}.{split}.bin"

    def finish(self, name: str | None) -> None:
        """Completes the stores and writes their index. name: the only domain's, None if documents named theirs."""
        self.wait()
        if not self.domains:
            raise UsageError(f"domain {name} has no text" if name else "there is no document in the data")
        names = sorted(self.domains)
        entries = []
        for number, domain_name in enumerate(names):
            domain = self.domains[domain_name]
            self._hold_out_end(domain)
            for split in SPLITS:
                path = self._path(domain, split)
                path.touch()
                # Files are renumbered in the order of names, in two steps so that they do not collide.
                path.rename(self.folder / f"{split}.{number}")
        for number, domain_name in enumerate(names):
            for split in SPLITS:
                (self.folder / f"{split}.{number}").rename(self.folder / f"{number}.{split}.bin")
            documents = self.domains[domain_name].documents
            content = _content_of(self.folder, number, self.dtype)
            entries.append({"name": domain_name, "documents": documents, "content": content})
        index = {"version": STORE_VERSION, "dtype": self.dtype.name, "domains": entries}
        (self.folder / "index.json").write_text(json.dumps(index))

    def _hold_out_end(self, domain: _DomainFiles) -> None:
        """Holds out the end of the stream, too, if there were too few documents to hold some out."""
        train, validation = (self._path(domain, split) for split in SPLITS)
        held_out, total = domain.tokens["validation"], sum(domain.tokens.values())
        wanted = total // HOLD_OUT_EVERY
        enough = held_out >= wanted // 2 if domain.hold_out else held_out > 0
        if enough or not train.is_file():
            return
        cut = domain.tokens["train"] - (wanted - held_out)
        with train.open("rb") as source, validation.open("ab") as target:
            source.seek(cut * self.dtype.itemsize)
            shutil.copyfileobj(source, target)
        os.truncate(train, cut * self.dtype.itemsize)
