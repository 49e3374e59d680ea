"""Writes token stores: documents are read, tokenised on all cores, split by hash, and appended to the files of their domain.

    documents -> batches -> tokenizer -> <n>.train.bin, <n>.validation.bin, <n>.documents.bin, index.json

Reading and writing run in threads beside the tokenizer, which does not hold Python's lock while it works.
"""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus import hub
from acodm_cli.corpus.cache import digest_of_json
from acodm_cli.corpus.holding_out import (
    DOCUMENT,
    HOLD_OUT_EVERY,
    document_hash,
    is_held_out,
    split_again,
    wanted_of,
)
from acodm_cli.corpus.readers import BadRecord, BadRecords, Document, Item, read_items, size_of
from acodm_cli.corpus.sources import FileSource, HubSource
from acodm_cli.corpus.token_files import TokenFile, content_key, mapped
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import UsageError

STORE_VERSION = 5
MAX_DOMAINS = 10_000
SPLITS = ("train", "validation")
_ENCODE_CHARACTERS = 1 << 21
_LONGEST_WORD = 1 << 12
_NO_IDS = np.zeros(0, np.uint32)
_WORD = re.compile(r"[^\s] (?=[^\W\d_])")
# A hub stream ends when so many documents in a row belonged to domains whose budget is used up.
_PATIENCE = 1_000_000

# It is told what is read (a domain, or files of several), how far, and of how much (bytes, or tokens of a budget; 0 for
# an unknown amount).
OnProgress = Callable[[str, int, int], None]


class Encoded(NamedTuple):
    """One tokenised document, or a record that cannot be used.

    domain: empty if it was not asked for. ids: none of a document without text. text_hash: of its text. file: the number of
    its file. bad: the record, None if it can be used."""

    domain: str
    ids: NDArray[np.uint32]
    text_hash: int
    file: int
    bad: BadRecord | None


def write_store(
    source: FileSource | HubSource, tokenizer: Tokenizer, folder: Path, skip_bad: int, on_progress: OnProgress
) -> None:
    """Tokenises a source into an empty folder.

    skip_bad: how many records that cannot be used are left out.

    Raises:
        UsageError: a document cannot be read, or there is no text.
        OSError: the folder cannot be written.
    """
    writer = _StoreWriter(folder, tokenizer, BadRecords(skip_bad))
    try:
        if isinstance(source, FileSource):
            _write_files(source, tokenizer, writer, on_progress)
        else:
            _write_stream(source, tokenizer, writer, on_progress)
        writer.finish(source.domain)
    finally:
        writer.thread.shutdown()  # the thread must end before its folder is renamed or removed


def _write_files(source: FileSource, tokenizer: Tokenizer, writer: _StoreWriter, on_progress: OnProgress) -> None:
    total = sum(map(size_of, source.train + source.validation))
    label = source.domain or ", ".join(sorted({path.parent.name for path in source.train}))
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(label, min(done, total), total)

    for split, paths in (("train", source.train), ("validation", source.validation)):
        items = (
            (item, number) for number, path in enumerate(paths) for item in read_items(path, source.fields, on_bytes)
        )
        hold_out = split == "train" and not source.validation
        for batch in encoded(items, tokenizer):
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
        for batch in encoded(((item, 0) for item in wanted), tokenizer):
            writer.add(batch, split, split == "train" and validation is None, budget, patience)
            counts = [d.tokens[split] for d in list(writer.domains.values())]  # the writer's thread adds to them
            on_progress(source.dataset, sum(min(c, budget or c) for c in counts), (budget or 0) * len(counts))


def _until_done(items: Iterator[Item], writer: _StoreWriter, split: str, budget: int | None) -> Iterator[Item]:
    """Yields documents until the writer needs no more. Those that it has no use for are yielded without text, so that
    nothing of them is tokenised.

    The writer, which sees documents in order, decides what is stored. How far it lags behind this reader is a matter of
    chance, so only the amount of wasted work may depend on that.
    """
    for item in items:
        if split in writer.done:
            return
        if budget is not None and isinstance(item, Document):
            domain = writer.domains.get(item.domain or "")
            if domain is not None and domain.tokens[split] >= budget:
                item = replace(item, text="")
        yield item


def encoded(items: Iterator[tuple[Item, int]], tokenizer: Tokenizer) -> Iterator[list[Encoded]]:
    """Yields batches of tokenised documents. A thread reads documents ahead, in batches that feed the tokenizer's
    threads and bound the memory.

    items: pairs of a document, or a bad record, and the number of its file."""
    with _Prefetched(_in_batches(items)) as batches:
        for batch in batches:
            ids = _ids_of([text for text, _ in batch], tokenizer)
            yield [part._replace(ids=ids_N) for (_, part), ids_N in zip(batch, ids, strict=True)]


def _in_batches(items: Iterator[tuple[Item, int]]) -> Iterator[list[tuple[str, Encoded]]]:
    """Yields batches of a text and what is known of it before it is tokenised."""
    batch: list[tuple[str, Encoded]] = []
    characters = 0
    for item, number in items:
        if isinstance(item, Document):
            text = item.text if item.text.strip() else ""  # nothing can be learned from white space alone
            part = Encoded(item.domain or "", _NO_IDS, document_hash(text), number, None)
        else:
            text, part = "", Encoded("", _NO_IDS, 0, number, item)
        batch.append((text, part))
        characters += len(text)
        if len(text) > 2 * _ENCODE_CHARACTERS and len(batch) > 1:  # a long one is a batch of its own
            yield batch[:-1]
            batch = batch[-1:]
        if characters >= _ENCODE_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _ids_of(texts: list[str], tokenizer: Tokenizer) -> list[NDArray[np.uint32]]:
    """Tokenises texts. A long one is tokenised in pieces, because the tokenizer takes 140 bytes per character meanwhile."""
    if len(texts) == 1 and len(texts[0]) > 2 * _ENCODE_CHARACTERS:
        pieces = [_ids_of([piece], tokenizer)[0] for piece in _pieces(texts[0])]
        return [np.concatenate(pieces)]
    encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.uint32) for encoding in encodings]


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text where tokens do not cross: before a space that begins a word."""
    start = 0
    while len(text) - start > 2 * _ENCODE_CHARACTERS:
        spaces = _WORD.finditer(text, start + _ENCODE_CHARACTERS, start + _ENCODE_CHARACTERS + _LONGEST_WORD)
        cut = next((found.start() + 1 for found in spaces), start + _ENCODE_CHARACTERS)
        yield text[start:cut]
        start = cut
    yield text[start:]


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


@dataclass(eq=False)
class _Domain:
    """What was written of one domain. files: the numbers of the training files that it comes from. overlap: how many
    documents of the validation split are documents of training too, and were left out."""

    number: int
    hold_out: bool = False
    documents: int = 0
    empty: int = 0
    overlap: int = 0
    files: set[int] = field(default_factory=set)
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    trained_on: NDArray[np.uint64] | None = None


class _StoreWriter:
    """Appends token ids to the files of their domains, in a thread, in order."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, bad: BadRecords) -> None:
        self.folder = folder
        self.bad = bad
        self.end = tokenizer.end_of_document
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self.domains: dict[str, _Domain] = {}
        self.useless = 0
        self.fruitful: set[tuple[str, int]] = set()
        self.done: set[str] = set()
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def add(
        self, batch: list[Encoded], split: str, hold_out: bool, budget: int | None = None, patience: int = 1
    ) -> None:
        """Hands a batch to the thread. hold_out: whether documents of this split go to validation by their hash.
        budget: the tokens after which a domain takes no more. patience: after so many documents in a row that were not
        taken, the split is done."""
        self.wait()
        self.pending = self.thread.submit(self._write, batch, split, hold_out, budget, patience)

    def wait(self) -> None:
        """Waits until the last batch is written, and raises the thread's error if it could not be."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, batch: list[Encoded], split: str, hold_out: bool, budget: int | None, patience: int) -> None:
        parts: dict[tuple[_Domain, str], list[NDArray]] = {}
        end = np.array([self.end], self.dtype)
        for document in batch:
            if split in self.done:
                break
            if document.bad is not None:
                self.bad.add(document.bad)
                continue
            domain = self._domain(document.domain)
            if budget is not None and domain.tokens[split] >= budget:
                self.useless += 1
                if self.useless >= patience:
                    self.done.add(split)
                continue
            self.useless = 0
            domain.hold_out |= hold_out
            if not len(document.ids):
                domain.empty += 1
                continue
            if split == "validation" and self._is_trained_on(domain, document.text_hash):
                domain.overlap += 1
                continue
            held_out = split == "validation" or (hold_out and is_held_out(document.text_hash))
            into = "validation" if held_out else "train"
            length = len(document.ids) + 1
            self.fruitful.add((split, document.file))
            if split == "train":
                domain.files.add(document.file)
            domain.documents += 1
            domain.tokens[into] += length
            parts.setdefault((domain, into), []).extend((document.ids.astype(self.dtype), end))
            parts.setdefault((domain, "documents"), []).append(
                np.array([(document.text_hash, length, held_out)], DOCUMENT)
            )
        for (domain, into), arrays in parts.items():
            with self._path(domain, into).open("ab") as file:
                file.write(np.concatenate(arrays).data)  # tofile does not report a disk that is full at its last flush

    def _domain(self, name: str) -> _Domain:
        if name not in self.domains:
            if len(self.domains) == MAX_DOMAINS:
                raise UsageError(
                    f"more than {MAX_DOMAINS} domains, such as {', '.join(map(repr, list(self.domains)[:3]))}; is this "
                    "the right --domain-field?"
                )
            self.domains[name] = _Domain(len(self.domains))
        return self.domains[name]

    def _is_trained_on(self, domain: _Domain, text_hash: int) -> bool:
        """Whether a document of the validation split is also one of training, all of which is written by then."""
        if domain.trained_on is None:
            path = self._path(domain, "documents")
            documents_N = np.fromfile(path, DOCUMENT) if path.is_file() else np.zeros(0, DOCUMENT)
            domain.trained_on = np.sort(documents_N["hash"])
        at = np.searchsorted(domain.trained_on, np.uint64(text_hash))
        return bool(at < len(domain.trained_on) and domain.trained_on[at] == text_hash)

    def _path(self, domain: _Domain, part: str) -> Path:
        return self.folder / f"{domain.number}.{part}.bin"

    def finish(self, name: str | None) -> None:
        """Completes the stores and writes their index. name: the only domain's, None if documents named theirs."""
        self.wait()
        if not any(domain.documents for domain in self.domains.values()):
            empty = sum(domain.empty for domain in self.domains.values())
            why = f"; its {empty} documents are empty" if empty else ""
            raise UsageError(f"domain {name} has no text{why}" if name else f"there is no document in the data{why}")
        names = sorted(name for name, domain in self.domains.items() if domain.documents)
        parts = (*SPLITS, "documents")
        entries = []
        for number, domain_name in enumerate(names):
            domain = self.domains[domain_name]
            self._complete_split(domain)
            for part in parts:
                path = self._path(domain, part)
                path.touch()
                # Files are renumbered in the order of names, in two steps so that they do not collide.
                path.rename(self.folder / f"{part}.{number}")
        for number, domain_name in enumerate(names):
            domain = self.domains[domain_name]
            for part in parts:
                (self.folder / f"{part}.{number}").rename(self.folder / f"{number}.{part}.bin")
            entries.append(
                {
                    "name": domain_name,
                    "content": content_of(self.folder, number, self.dtype),
                    "files": len(domain.files),
                    "empty": domain.empty,
                    "overlap": domain.overlap,
                    "held_out": domain.hold_out,
                }
            )
        index = {
            "version": STORE_VERSION,
            "dtype": self.dtype.name,
            "bad": {"count": self.bad.count, "examples": self.bad.examples},
            "blank": sorted(set(self.domains) - set(names)),
            "fruitful": sorted(self.fruitful),
            "domains": entries,
        }
        index["digest"] = digest_of_json(index)
        (self.folder / "index.json").write_text(json.dumps(index))

    def _complete_split(self, domain: _Domain) -> None:
        """Splits a domain again if too little or too much is held out: it has few documents, or no validation text."""
        wanted = wanted_of(sum(domain.tokens.values()))
        domain.hold_out |= not domain.tokens["validation"]
        if not domain.hold_out or not domain.documents or wanted.is_met(domain.tokens["validation"]):
            return
        paths = [self._path(domain, split) for split in SPLITS]
        for path in paths:
            path.touch()
        before = [mapped(path, self.dtype) for path in paths]
        documents_M, pieces = split_again(np.fromfile(self._path(domain, "documents"), DOCUMENT), wanted)
        partial = [path.with_suffix(".again") for path in paths]
        with partial[0].open("wb") as train, partial[1].open("wb") as validation:
            for piece in pieces:
                target = validation if piece.held_out else train
                target.write(before[piece.was_held_out][piece.start : piece.stop].tobytes())
        for path, new in zip(paths, partial, strict=True):
            new.replace(path)
        self._path(domain, "documents").write_bytes(documents_M.tobytes())


def content_of(folder: Path, number: int, dtype: np.dtype) -> str:
    """A hash of the tokens of both splits of a domain in a store."""
    paths = [folder / f"{number}.{split}.bin" for split in SPLITS]
    files = [TokenFile(path, dtype, 0, 0, path.stat().st_size // dtype.itemsize) for path in paths]
    return "".join(content_key([file]) for file in files)
