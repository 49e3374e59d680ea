"""Decides which documents are held out for validation, where the data have no validation split of their own.

A document is held out if a hash of its text is among the smallest twentieth of all hashes. So the choice does not depend
on the order of documents, on other documents, or on chance, and copies of a document are never on both sides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOLD_OUT_EVERY = 20
_HELD_OUT_BELOW = (1 << 64) // HOLD_OUT_EVERY
# What is kept of each document: its hash, its length with its end in tokens, and whether it is held out.
DOCUMENT = np.dtype([("hash", "<u8"), ("length", "<u4"), ("held_out", "u1")])


def document_hash(text: str) -> int:
    """A hash of a document's text. 64 bits: of a billion documents, about 0.03 pairs share one by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def is_held_out(hash_of_text: int) -> bool:
    """Whether a document is held out by its hash alone."""
    return hash_of_text < _HELD_OUT_BELOW


def wanted_tokens(total: int, least: int = 0) -> int:
    """How many tokens to hold out. least: the tokens of one sequence, which are held out if there are three of them."""
    wanted = total // HOLD_OUT_EVERY
    return max(wanted, least) if total >= 3 * least else wanted


def suffices(held_out: int, total: int, least: int = 0) -> bool:
    """Whether the tokens that are held out by hash alone are about as many as they should be."""
    wanted = wanted_tokens(total, least)
    return max(wanted // 2, least if total >= 3 * least else 0) <= held_out <= max(2 * wanted, 1)


@dataclass(frozen=True)
class Choice:
    """Which documents are held out. held_out_N: whether a document is, whole. cut: the document of which the last
    cut_tokens are held out too, None if no document is cut."""

    held_out_N: NDArray[np.bool_]
    cut: int | None
    cut_tokens: int


def choose(documents_N: NDArray, wanted: int) -> Choice:
    """Chooses documents of few or long ones, in the order of their hashes, until enough tokens are held out.

    Documents that would hold out more than twice of what is wanted are passed over. If the others do not suffice, the end
    of the longest document that has no copy is held out.

    documents_N: as DOCUMENT. wanted: tokens.
    """
    hashes, group_N, copies = np.unique(documents_N["hash"], return_inverse=True, return_counts=True)
    lengths = np.bincount(group_N, documents_N["length"].astype(np.float64)).astype(np.int64)
    taken, held_out = np.zeros(len(hashes), bool), 0
    for group, length in enumerate(lengths.tolist()):
        if held_out >= wanted:
            break
        if held_out + length <= 2 * wanted:
            taken[group], held_out = True, held_out + length
    held_out_N = taken[group_N]
    if held_out >= max(wanted - wanted // 2, 1):
        return Choice(held_out_N, None, 0)
    single_N = (copies[group_N] == 1) & ~held_out_N
    candidates = np.flatnonzero(single_N if single_N.any() else ~held_out_N)
    cut = int(candidates[documents_N["length"][candidates].argmax()])
    tokens = min(wanted - held_out, int(documents_N["length"][cut]) // 2)
    return Choice(held_out_N, cut if tokens else None, tokens)


def split_again(
    train: NDArray[np.integer], validation: NDArray[np.integer], documents_N: NDArray, wanted: int
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray]:
    """Splits a domain anew, so that about `wanted` tokens are held out.

    train, validation: the tokens of its documents as they are split now, each in the order of documents_N.

    Returns:
        train, validation and documents_N as they are split then.
    """
    choice = choose(documents_N, wanted)
    pieces: dict[bool, list[NDArray[np.integer]]] = {False: [], True: []}
    documents: list[tuple[int, int, bool]] = []
    at = {False: 0, True: 0}
    for number, (text_hash, length, was_held_out) in enumerate(documents_N.tolist()):
        source, start = (validation if was_held_out else train), at[bool(was_held_out)]
        at[bool(was_held_out)] += length
        end = start + length
        if number == choice.cut:  # the end becomes a document of its own, with a hash by which it stays held out
            end -= choice.cut_tokens
            pieces[True].append(source[end : end + choice.cut_tokens])
            documents.append((0, choice.cut_tokens, True))
        held_out = bool(choice.held_out_N[number])
        pieces[held_out].append(source[start:end])
        documents.append((text_hash, end - start, held_out))
    none = np.zeros(0, train.dtype)
    return np.concatenate([none, *pieces[False]]), np.concatenate([none, *pieces[True]]), np.array(documents, DOCUMENT)
