"""Decides which documents are held out for validation, where the data have no validation split of their own.

A document is held out if a hash of its text is among the smallest twentieth of all hashes. So the choice does not depend
on the order of documents, on other documents, or on chance, and copies of a document are never on both sides. Only where
that gives too little or too much, because documents are few or long, is the whole domain looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOLD_OUT_EVERY = 20
_HELD_OUT_BELOW = (1 << 64) // HOLD_OUT_EVERY
# What is kept of each document: its hash, its length with its end in tokens, and whether it is held out. The end of a
# document that was cut is a document of its own, whose hash is 0.
DOCUMENT = np.dtype([("hash", "<u8"), ("length", "<u4"), ("held_out", "u1")])


def document_hash(text: str) -> int:
    """A hash of a document's text, from 1. 64 bits: of a billion documents, about 0.03 pairs share one by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def is_held_out(hash_of_text: int) -> bool:
    """Whether a document is held out by its hash alone."""
    return hash_of_text < _HELD_OUT_BELOW


@dataclass(frozen=True)
class Wanted:
    """How many tokens to hold out. aim: the number to come near to. least: the number that must be reached."""

    aim: int
    least: int

    def is_met(self, held_out: int) -> bool:
        """Whether about as many tokens are held out as should be."""
        return self.least <= held_out <= max(2 * self.aim, 1)


def wanted_of(total: int, sequence: int = 0) -> Wanted:
    """What to hold out of so many tokens. sequence: the tokens of one sequence, which are held out if there are three."""
    aim = total // HOLD_OUT_EVERY
    if 0 < sequence <= total // 3:
        return Wanted(max(aim, sequence), max(aim // 2, sequence))
    return Wanted(aim, aim // 2)


@dataclass(frozen=True)
class Piece:
    """Tokens [start, stop) of one side, and the side that they go to. True is the side that is held out."""

    was_held_out: bool
    start: int
    stop: int
    held_out: bool


def split_again(documents_N: NDArray, wanted: Wanted) -> tuple[NDArray, Iterator[Piece]]:
    """Splits a domain anew, by whole documents if possible.

    Documents are held out in the order of their hashes, but for those that would hold out more than twice of what is wanted.
    If the others do not suffice, the ends of the longest are held out; copies are cut alike, so that no text is on both
    sides.

    documents_N: as DOCUMENT, in the order in which each side has them.

    Returns:
        documents_N as it is then, and the pieces of the tokens, in order.
    """
    hashes, group_N, copies = np.unique(documents_N["hash"], return_inverse=True, return_counts=True)
    totals = np.bincount(group_N, documents_N["length"].astype(np.float64)).astype(np.int64)
    held_out, taken, most = 0, np.zeros(len(hashes), bool), len(hashes) // 4 + 1
    for group, length in enumerate(totals.tolist()):
        if held_out >= wanted.aim or not most:  # beside one long document, all short ones would not be much
            break
        if held_out + length <= 2 * wanted.aim:
            taken[group], held_out, most = True, held_out + length, most - 1
    cut = np.zeros(len(hashes), np.int64)  # tokens at the end of each copy
    for group in np.lexsort((hashes, -totals)).tolist():
        if held_out >= max(wanted.least, 1):
            break
        if not taken[group] and hashes[group]:
            each = int(totals[group] // copies[group])
            cut[group] = min(-(-(wanted.aim - held_out) // int(copies[group])), each // 2)
            held_out += int(cut[group] * copies[group])
    if held_out < wanted.least:  # what was cut before is too short to be cut again: its ends stay held out
        taken |= hashes == 0
    return _moved(documents_N, taken[group_N], cut[group_N])


def _moved(
    documents_N: NDArray, held_out_N: NDArray[np.bool_], cut_N: NDArray[np.int64]
) -> tuple[NDArray, Iterator[Piece]]:
    """Returns the documents and pieces if some documents are held out, and the last cut_N tokens of others."""
    was_N = documents_N["held_out"].astype(bool)
    # The end of a document that is cut follows it as a document of its own.
    ends = np.flatnonzero(cut_N)
    after_M = np.insert(documents_N, ends + 1, documents_N[ends])
    is_end_M = np.insert(np.zeros(len(documents_N), bool), ends + 1, True)
    is_end = np.flatnonzero(is_end_M)
    after_M["length"][is_end] = cut_N[ends]
    after_M["length"][is_end - 1] -= cut_N[ends].astype("<u4")
    after_M["hash"][is_end] = 0
    after_M["held_out"] = np.insert(held_out_N, ends + 1, True)
    return after_M, _pieces(
        after_M["length"].astype(np.int64), np.insert(was_N, ends + 1, was_N[ends]), after_M["held_out"] > 0
    )


def _pieces(length_M: NDArray[np.int64], was_M: NDArray[np.bool_], now_M: NDArray[np.bool_]) -> Iterator[Piece]:
    """Yields documents that come from one side and go to one side, as few pieces."""
    at = {False: 0, True: 0}
    borders = np.flatnonzero((np.diff(was_M) != 0) | (np.diff(now_M) != 0)) + 1
    for first, last in zip([0, *borders.tolist()], [*borders.tolist(), len(length_M)], strict=True):
        was, size = bool(was_M[first]), int(length_M[first:last].sum())
        yield Piece(was, at[was], at[was] + size, bool(now_M[first]))
        at[was] += size
