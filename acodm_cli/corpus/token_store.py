"""Token stores hold a domain's tokens on disk, memory-mapped. They are made once per content and tokenizer.

source -> key -> cache/tokens/<key>/ (made by `store_writer` if it is not there) -> DomainStore per domain
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus import hub
from acodm_cli.corpus.cache import digest_of_json, make_once
from acodm_cli.corpus.holding_out import DOCUMENT, split_again, wanted_of
from acodm_cli.corpus.readers import suffixes
from acodm_cli.corpus.sources import FileSource, HubSource, Source, TokenSource
from acodm_cli.corpus.store_writer import SPLITS, STORE_VERSION, OnProgress, content_of, write_store
from acodm_cli.corpus.token_files import TokenFile, content_key, document_ends, mapped, open_tokens, unended
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import in_short

# At most so many tokens are held out at the end of a stream that cannot be copied; a long document may double them.
HOLD_OUT_TOKENS = 1_000_000


class TokenStore:
    """One split of one domain as a stream of token ids, in which the end-of-document token separates documents.

    Sequence k is tokens [k·T, k·T + T]: T inputs and, shifted by one, T labels. Sequences cross document borders.

    parts: the stream, in one or several arrays that follow each other, each [N].
    """

    def __init__(self, *parts: NDArray[np.integer]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def tokens(self) -> NDArray[np.integer]:
        """All tokens. Several parts are copied into one array."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)

    def num_sequences(self, seq_len: int) -> int:
        """The number of whole sequences with T = seq_len."""
        return max(0, len(self) - 1) // seq_len

    def sequence(self, index: int, seq_len: int) -> NDArray[np.int64]:
        """The token ids of sequence `index` with T = seq_len. [T + 1]"""
        return self.slice(index * seq_len, seq_len + 1).astype(np.int64)

    def slice(self, start: int, count: int) -> NDArray[np.integer]:
        """The tokens [start, start + count), fewer at the end of the stream. [count]"""
        end = min(start + count, len(self))
        if len(self.parts) == 1:
            return self.parts[0][start:end]
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        pieces = []
        while first < len(self.parts) and self.starts[first] < end:
            offset = self.starts[first]
            pieces.append(self.parts[first][max(0, start - offset) : end - offset])
            first += 1
        return np.concatenate(pieces) if pieces else self.parts[0][:0]


@dataclass(frozen=True)
class Provenance:
    """Where a domain's tokens come from, for the table before a run.

    files: the number of its training files, 0 for a dataset of the hub. validation_files: the names of its validation
    files; empty if validation text was held out. documents: how many training documents there are, None if it is not known.
    empty: how many documents without text were dropped. overlap: how many validation documents were dropped because they
    are training documents too. documents_N: every document, as `holding_out.DOCUMENT`; None of tokens of other tools.
    warnings: what the user should know of it."""

    files: int = 0
    validation_files: tuple[str, ...] = ()
    documents: int | None = None
    empty: int = 0
    overlap: int = 0
    documents_N: NDArray | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DomainStore:
    """The tokens of one domain. key: a hash of the tokens of both splits, wherever they come from."""

    name: str
    train: TokenStore
    validation: TokenStore
    key: str
    provenance: Provenance = field(default_factory=Provenance)


@dataclass(frozen=True)
class Opened:
    """The domains of a source, in order of name. bad: how many records were left out. examples: some of these, as messages.
    blank: the domains that were left out because none of their documents has text. fruitless: the files that gave no
    document."""

    domains: list[DomainStore]
    bad: int = 0
    examples: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    fruitless: tuple[Path, ...] = ()


def open_source(
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    on_progress: OnProgress,
    skip_bad: int = 0,
    seq_len: int | None = None,
) -> Opened:
    """Opens the stores of a source's domains in the cache. It makes them first if they are not there.

    The key in the cache is a hash of the source's content and the tokenizer, so that a changed file is tokenised again.
    Any number of processes may prepare the same source at once.

    skip_bad: how many records that cannot be used are left out while the stores are made. seq_len: where text is held out,
    at least one sequence of this length is, if there is enough text.

    Raises:
        UsageError: a document cannot be read, or a domain has no text. The cache is left as it was.
        AcodmError: the cache cannot be written, or is damaged.
    """
    sequence = 0 if seq_len is None else seq_len + 1
    if isinstance(source, TokenSource):
        return Opened([_open_token_source(source, tokenizer, sequence)])
    if isinstance(source, HubSource):
        source = hub.pinned(source, cache)
    folder = cache / "tokens" / _source_key(source, tokenizer)
    label = source.domain or "documents"
    make_once(
        folder,
        lambda partial: write_store(source, tokenizer, partial, skip_bad, on_progress),
        lambda: on_progress(f"{label} (another process is at it)", 0, 0),
    )
    return _open_folder(folder, source, sequence)


def _open_folder(folder: Path, source: FileSource | HubSource, sequence: int) -> Opened:
    """Opens the stores in a folder of the cache. sequence: the tokens of one sequence, of which one is held out at least."""
    try:
        index = json.loads((folder / "index.json").read_text())
        # Stores that were made before have none.
        if (digest := index.pop("digest", None)) is not None and digest != digest_of_json(index):
            raise _damaged(folder)
        dtype, bad = np.dtype(index["dtype"]), index["bad"]
        domains = [
            _open_domain(folder, number, entry, dtype, source, sequence)
            for number, entry in enumerate(index["domains"])
        ]
        fruitful = {(split, number) for split, number in index["fruitful"]}
        return Opened(
            domains,
            int(bad["count"]),
            tuple(map(str, bad["examples"])),
            tuple(map(str, index["blank"])),
            _fruitless(source, fruitful),
        )
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EIO):
            more = "; raise the limit with ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
            raise AcodmError(f"the token cache {folder} cannot be read ({in_short(error)}){more}") from None
        raise _damaged(folder) from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(folder) from None


def _fruitless(source: FileSource | HubSource, fruitful: set[tuple[str, int]]) -> tuple[Path, ...]:
    if isinstance(source, HubSource):
        return ()
    sides = (("train", source.train), ("validation", source.validation))
    return tuple(path for split, paths in sides for n, path in enumerate(paths) if (split, n) not in fruitful)


def _damaged(folder: Path) -> AcodmError:
    return AcodmError(f"the token cache {folder} is damaged; remove it, and it will be made again")


def _open_domain(
    folder: Path, number: int, entry: dict[str, Any], dtype: np.dtype, source: FileSource | HubSource, sequence: int
) -> DomainStore:
    content = content_of(folder, number, dtype)
    if content != entry["content"]:
        raise ValueError
    train, validation = (mapped(folder / f"{number}.{split}.bin", dtype) for split in SPLITS)
    documents_N = mapped(folder / f"{number}.documents.bin", DOCUMENT)
    if int(documents_N["length"].sum(dtype=np.int64)) != len(train) + len(validation):
        raise ValueError
    wanted = wanted_of(len(train) + len(validation), sequence)
    if entry["held_out"] and not wanted.is_met(len(validation)):
        documents_N, pieces = split_again(documents_N, wanted)
        sides: dict[bool, list[NDArray]] = {False: [train[:0]], True: [train[:0]]}
        for piece in pieces:
            sides[piece.held_out].append((validation if piece.was_held_out else train)[piece.start : piece.stop])
        train, validation = np.concatenate(sides[False]), np.concatenate(sides[True])
    of_files = isinstance(source, FileSource)
    given = source.validation if isinstance(source, FileSource) and not entry["held_out"] else ()
    provenance = Provenance(
        files=entry["files"] if of_files else 0,
        validation_files=_in_short(given),
        documents=int((documents_N["held_out"] == 0).sum()),
        empty=entry["empty"],
        overlap=entry["overlap"],
        documents_N=documents_N,
    )
    return DomainStore(
        source.domain or entry["name"], TokenStore(train), TokenStore(validation), _key(entry["content"]), provenance
    )


def _in_short(paths: Sequence[Path]) -> tuple[str, ...]:
    """The names of files with their folders', because files of several domains often have the same."""
    return tuple(f"{path.parent.name}/{path.name}" for path in paths)


def _key(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:24]


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
                raise UsageError(f"{path}: cannot be read ({in_short(error)})") from None
            digest.update(f" {split} {''.join(suffixes(path))} {content}".encode())
    return digest.hexdigest()[:24]


# Tokens on disk


def _open_token_source(source: TokenSource, tokenizer: Tokenizer, sequence: int) -> DomainStore:
    train = [open_tokens(path, tokenizer) for path in source.train]
    found = [document_ends(file, tokenizer) for file in train]
    ends = [each.ends_N for each in found]
    warnings = _unended(source.domain, train, ends, tokenizer)
    validation = [open_tokens(path, tokenizer) for path in source.validation]
    _check_copies([*train, *validation])
    if validation:
        key = content_key(train) + content_key(validation)
    else:
        key = "".join(content_key(side) for side in _cut(train, ends, 0))
        train, validation = _cut(train, ends, sequence)
    provenance = Provenance(
        files=len(source.train),
        validation_files=_in_short(source.validation),
        documents=_count(train, ends) if all(each.complete for each in found) else None,
        warnings=warnings,
    )
    stores = [TokenStore(*(file.mapped() for file in files)) for files in (train, validation)]
    return DomainStore(source.domain, stores[0], stores[1], _key(key), provenance)


def _check_copies(files: Sequence[TokenFile]) -> None:
    """Raises UsageError if two files of a domain hold the same tokens."""
    of_length: dict[int, list[TokenFile]] = {}
    for file in files:
        of_length.setdefault(file.length, []).append(file)
    for alike in of_length.values():
        seen: dict[str, TokenFile] = {}
        for file in alike if len(alike) > 1 else ():
            first = seen.setdefault(content_key([file]), file)
            if first is not file:
                raise UsageError(f"{first.path} and {file.path} hold the same tokens; remove one of them")


def _cut(
    files: Sequence[TokenFile], ends: Sequence[NDArray[np.int64]], sequence: int
) -> tuple[list[TokenFile], list[TokenFile]]:
    """Holds out the end of files that cannot be copied. Returns what stays, and what is held out.

    The cut is where the last document before the wanted share ends. If the held-out split would then be more than twice as
    large as wanted, the cut is at the share itself. ends: where documents end in each file."""
    total = sum(file.length for file in files)
    wanted = min(wanted_of(total, sequence).aim, max(HOLD_OUT_TOKENS, sequence))
    at, before = total - wanted, 0
    for file, ends_N in zip(files, ends, strict=True):
        if before <= at < before + file.length:
            number = int(np.searchsorted(ends_N, at - before, "right"))
            border = before + (int(ends_N[number - 1]) if number else 0)
            at = border if total - border <= 2 * wanted else at
            break
        before += file.length
    kept, held_out, before = [], [], 0
    for file in files:
        inside = min(max(at - before, 0), file.length)
        kept += [file.part(0, inside)] if inside else []
        held_out += [file.part(inside, file.length - inside)] if inside < file.length else []
        before += file.length
    return kept, held_out


def _count(kept: Sequence[TokenFile], ends: Sequence[NDArray[np.int64]]) -> int:
    """How many documents end in what was kept of some files."""
    return sum(int(np.searchsorted(ends_N, part.length, "right")) for part, ends_N in zip(kept, ends, strict=False))


def _unended(
    domain: str, files: Sequence[TokenFile], ends: Sequence[NDArray[np.int64]], tokenizer: Tokenizer
) -> tuple[str, ...]:
    found = [(*unended(file, ends_N, tokenizer), file.path.name) for file, ends_N in zip(files, ends, strict=True)]
    share, common, name = max(found)
    if share <= 0.01:
        return ()
    instead = f", most with {common!r}" if common and common != tokenizer.end_text else ""
    return (
        f"domain {domain}: {share:.0%} of the documents of {name} do not end with the end-of-document token {tokenizer.end_text!r}{instead}, "
        "so documents run into one another; make the tokens anew with it (--append-eod of Megatron-LM), or name their own "
        "with --eos-token",
    )
