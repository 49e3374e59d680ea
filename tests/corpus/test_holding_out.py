from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acodm_cli.corpus.holding_out import (
    DOCUMENT,
    HOLD_OUT_EVERY,
    Wanted,
    document_hash,
    is_held_out,
    split_again,
    wanted_of,
)


def table(documents: list[tuple[int, int]]) -> np.ndarray:
    return np.array([(text_hash, length, 0) for text_hash, length in documents], DOCUMENT)


def test_a_twentieth_is_held_out_by_hash() -> None:
    held_out = sum(is_held_out(document_hash(f"document {number}")) for number in range(20_000))
    assert held_out == pytest.approx(20_000 / HOLD_OUT_EVERY, rel=0.1)


def split(
    train: np.ndarray, validation: np.ndarray, documents_N: np.ndarray, wanted: Wanted
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    after, pieces = split_again(documents_N, wanted)
    sides: dict[bool, list[np.ndarray]] = {False: [train[:0]], True: [train[:0]]}
    for piece in pieces:
        sides[piece.held_out].append((validation if piece.was_held_out else train)[piece.start : piece.stop])
    return np.concatenate(sides[False]), np.concatenate(sides[True]), after


documents = st.lists(st.tuples(st.integers(1, 2**64 - 1), st.integers(2, 400)), min_size=1, max_size=40, unique_by=lambda d: d[0])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(documents, st.lists(st.integers(0, 39), max_size=30), st.integers(0, 700), st.randoms())
def test_splitting_again_keeps_every_token_and_no_text_is_on_both_sides(
    pairs: list[tuple[int, int]], copies: list[int], sequence: int, random: Random
) -> None:
    pairs = pairs + [pairs[copy % len(pairs)] for copy in copies]
    random.shuffle(pairs)
    documents_N = table(pairs)
    # Each token knows its text and its place in it.
    texts = {text_hash: number for number, text_hash in enumerate(sorted({text_hash for text_hash, _ in pairs}))}
    tokens = np.concatenate([np.arange(length) + 1000 * texts[text_hash] for text_hash, length in pairs])
    wanted = wanted_of(len(tokens), sequence)
    train, validation, after = split(tokens, tokens[:0], documents_N, wanted)
    assert sorted(np.concatenate([train, validation]).tolist()) == sorted(tokens.tolist())
    assert len(train) == after["length"][after["held_out"] == 0].sum()
    assert not set(train.tolist()) & set(validation.tolist())
    assert len(validation) >= wanted.least
    if 3 * sequence <= len(tokens):
        assert len(validation) >= sequence
    # The choice does not depend on the order.
    again = split(tokens, tokens[:0], table(sorted(pairs)), wanted)[2]
    assert sorted(again[["hash", "length", "held_out"]].tolist()) == sorted(after.tolist())
    # What was split can be split once more, to hold out more.
    more = wanted_of(len(tokens), min(2 * max(sequence, 1), len(tokens) // 3))
    train, validation, _ = split(train, validation, after, more)
    assert sorted(np.concatenate([train, validation]).tolist()) == sorted(tokens.tolist())
    assert not set(train.tolist()) & set(validation.tolist())
    assert len(validation) >= more.least


def test_ends_stay_held_out_where_nothing_is_left_to_cut() -> None:
    """Five copies of two tokens, of which a first split took the last."""
    tokens = np.array([0, 1] * 5)
    train, validation, after = split(tokens, tokens[:0], table([(7, 2)] * 5), wanted_of(10, 1))
    assert (train.tolist(), validation.tolist()) == ([0] * 5, [1] * 5)
    train, validation, _ = split(train, validation, after, wanted_of(10, 2))
    assert (train.tolist(), validation.tolist()) == ([0] * 5, [1] * 5)


def test_whole_documents_are_preferred() -> None:
    documents_N = table([(number, 100) for number in range(1, 101)])
    train, validation, after = split(np.arange(10_000), np.arange(0), documents_N, wanted_of(10_000))
    assert (len(train), len(validation)) == (9500, 500)
    assert after["hash"][after["held_out"] == 1].tolist() == [1, 2, 3, 4, 5]


def test_at_least_one_sequence_where_there_is_enough_text() -> None:
    assert wanted_of(10_000) == Wanted(500, 250)
    assert wanted_of(10_000, 1025) == Wanted(1025, 1025)
    assert wanted_of(2000, 1025) == Wanted(
        100, 50
    )  # two of three sequences would be left to train on, which there are not
    assert wanted_of(10_000).is_met(500)
    assert not wanted_of(10_000).is_met(1001)
    assert not wanted_of(10_000, 1025).is_met(500)
