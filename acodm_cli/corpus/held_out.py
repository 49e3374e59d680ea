"""Text that is never trained on, as sequences: the validation text of a domain, or a target's.

A validation split is cut into blocks at the ends of documents. Three of four are the *report* part, on which losses are
reported; the others are the *guide* part, which a reward may see. No document is in both. Windows are taken evenly over a
part, by the golden ratio: the first n windows are spread over all of it for every n, so runs of all sizes measure on the
same text.

Shape letters: N sequences, T positions, U = T + 1, D documents.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.token_store import TokenStore

Part = Literal["report", "guide"]
# A split with fewer windows has no guide part.
LEAST_WINDOWS = 8
_MOST_BLOCKS = 64
# The guide part of all domains together, and how many sequences of each it has at most.
GUIDE_OF_DOMAINS, _MOST_GUIDES = "held-out domains", 256
_GUIDE_EVERY = 4
# How far the end of a document is looked for, and how far one reaches at most in the count of documents.
_LOOK = 1 << 20
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class HeldOutText:
    """Sequences of one domain or target that are never trained on.

    tokens_NU: int32. counted_NT: whether the loss of the label tokens_NU[:, 1:] counts; at least one does. documents_NT: the
    number of the document that the label belongs to, from 0. bytes: how many bytes of text the counted labels stand for."""

    name: str
    tokens_NU: NDArray[np.int32]
    counted_NT: NDArray[np.bool_]
    documents_NT: NDArray[np.int32]
    bytes: int

    def __len__(self) -> int:
        return len(self.tokens_NU)

    @cached_property
    def tokens_D(self) -> NDArray[np.int64]:
        """The number of counted labels per document. [D]"""
        return np.bincount(self.documents_NT[self.counted_NT])

    def part(self, count: int, bytes_V: NDArray[np.int64]) -> HeldOutText:
        """Returns so many sequences of this text, spread evenly. bytes_V: the bytes of each token of the vocabulary."""
        rows = spread(len(self), count)
        return make_text(self.name, self.tokens_NU[rows], self.counted_NT[rows], self.documents_NT[rows], bytes_V)


def make_text(
    name: str,
    tokens_NU: NDArray[np.int32],
    counted_NT: NDArray[np.bool_],
    documents_NT: NDArray[np.int32],
    bytes_V: NDArray[np.int64],
) -> HeldOutText:
    """Returns a text with its documents numbered anew and its bytes counted. bytes_V: the bytes of each token."""
    _, numbers = np.unique(documents_NT, return_inverse=True)
    size = int(bytes_V[tokens_NU[:, 1:][counted_NT]].sum())
    return HeldOutText(name, tokens_NU, counted_NT, numbers.reshape(documents_NT.shape).astype(np.int32), size)


class Windows:
    """The windows of T + 1 tokens of one part of a validation split, each shifted by T from the last.

    blocks: where each block of the part begins, and how many windows it has. Starts of windows are computed from these, because
    a split may be large. ends: the sums of these numbers up to each block."""

    def __init__(self, store: TokenStore, seq_len: int, end_of_document: int, part: Part) -> None:
        self.store, self.seq_len, self.end = store, seq_len, end_of_document
        whole = store.num_sequences(seq_len)
        count = min(_MOST_BLOCKS, whole // 2) if whole >= LEAST_WINDOWS else 1
        borders = [0, *(self._document_start(len(store) * i // count) for i in range(1, count)), len(store)]
        blocks: dict[Part, list[tuple[int, int]]] = {"report": [], "guide": []}
        for block, (start, stop) in enumerate(pairwise(borders)):
            number = max(0, stop - start - 1) // seq_len
            if number:
                blocks["guide" if block % _GUIDE_EVERY == 1 else "report"].append((start, number))
        if (
            2 * sum(number for _, number in blocks["report"]) < whole
        ):  # a long document would have gone to the guide part
            blocks = {"report": [(0, whole)], "guide": []}
        self.blocks = blocks[part]
        self.ends = np.cumsum([number for _, number in self.blocks])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.blocks else 0

    def _document_start(self, position: int) -> int:
        """Returns where the first document after a position begins, the position itself if that is far."""
        tokens = self.store.slice(position, min(_LOOK, len(self.store) - position))
        found = np.flatnonzero(tokens == self.end)
        return position + int(found[0]) + 1 if len(found) else position

    def spread(self, count: int) -> NDArray[np.int64]:
        """Returns the starts of `count` windows that are spread evenly over the part, in order. [N]"""
        chosen = spread(len(self), count)
        block = np.searchsorted(self.ends, chosen, "right")
        starts = np.array([start for start, _ in self.blocks])[block]
        return starts + (chosen - np.concatenate([[0], self.ends])[block]) * self.seq_len

    def text(self, name: str, count: int, bytes_V: NDArray[np.int64]) -> HeldOutText:
        """Returns `count` windows, spread evenly, or all if there are fewer. bytes_V: the bytes of each token."""
        starts_N = self.spread(count)
        tokens_NU = np.stack([self.store.slice(int(start), self.seq_len + 1) for start in starts_N]).astype(np.int32)
        ends_NT = (tokens_NU[:, :-1] == self.end).cumsum(axis=1)
        first_N = self._documents_before(starts_N)
        return make_text(
            name, tokens_NU, np.ones(ends_NT.shape, bool), (first_N[:, None] + ends_NT).astype(np.int32), bytes_V
        )

    def _documents_before(self, starts_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the number of documents that end between the first window and each. Where windows are far apart, only
        so many tokens are looked at: they are then of different documents all the same. [N]"""
        ended = [0]
        for before, start in zip(starts_N[:-1].tolist(), starts_N[1:].tolist(), strict=True):
            near = self.store.slice(before, min(start - before, _LOOK))
            ended.append(int((near == self.end).sum()) + (start - before > _LOOK) * self.seq_len)
        return np.cumsum(ended)


def spread(total: int, count: int) -> NDArray[np.int64]:
    """Returns `count` of the numbers from 0 to total - 1, in order and spread evenly, or all. More of them are a superset."""
    if count >= total:
        return np.arange(total)
    tried, found = 2 * count + 8, np.zeros(0, np.int64)
    while len(found) < count:
        values = ((np.arange(tried) + 0.5) * _GOLDEN % 1 * total).astype(np.int64)
        _, first = np.unique(values, return_index=True)
        found, tried = values[np.sort(first)[:count]], 2 * tried
    return np.sort(found)


def validation_windows(corpus: Corpus, seq_len: int, part: Part = "report") -> list[Windows]:
    """Returns the windows of a part of each domain's validation text, in the order of the domains."""
    return list(_windows(corpus, corpus.names, seq_len, part).values())


def _windows(corpus: Corpus, names: Collection[str], seq_len: int, part: Part) -> dict[str, Windows]:
    """Returns the windows of some domains by name, in the order of the corpus."""
    end = corpus.tokenizer.end_of_document
    return {
        domain.name: Windows(domain.validation, seq_len, end, part) for domain in corpus.domains if domain.name in names
    }


def guide_of_domain(corpus: Corpus, name: str, seq_len: int, most: int = _MOST_GUIDES) -> HeldOutText | None:
    """Returns so many sequences at most of the guide part of a domain. None if it has none."""
    windows = _windows(corpus, [name], seq_len, "guide")[name]
    return windows.text(name, most, corpus.tokenizer.token_bytes_V) if len(windows) else None


def guide_of_domains(corpus: Corpus, seq_len: int, names: Collection[str]) -> HeldOutText | None:
    """Returns the guide part of some domains as one text, with as many sequences of each, so that its loss is the mean over
    them. None if one of them has no guide part."""
    windows = _windows(corpus, names, seq_len, "guide")
    rows = min(_MOST_GUIDES, *map(len, windows.values()))
    if not rows:
        return None
    bytes_V = corpus.tokenizer.token_bytes_V
    texts = [each.text(name, rows, bytes_V) for name, each in windows.items()]
    firsts = np.cumsum([0, *(len(text.tokens_D) for text in texts)])
    documents_NT = np.concatenate([text.documents_NT + first for text, first in zip(texts, firsts, strict=False)])
    tokens_NU, counted_NT = (np.concatenate([getattr(t, name) for t in texts]) for name in ("tokens_NU", "counted_NT"))
    return make_text(GUIDE_OF_DOMAINS, tokens_NU, counted_NT, documents_NT, bytes_V)


def validation_texts(corpus: Corpus, windows: Sequence[Windows], rows_K: Sequence[int]) -> list[HeldOutText]:
    """Returns so many sequences of each domain's validation text. windows: those of the domains."""
    bytes_V = corpus.tokenizer.token_bytes_V
    return [each.text(name, rows, bytes_V) for name, each, rows in zip(corpus.names, windows, rows_K, strict=True)]
