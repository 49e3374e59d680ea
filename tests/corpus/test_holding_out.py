from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acodm_cli.corpus.holding_out import (
    DOCUMENT,
    HOLD_OUT_EVERY,
    choose,
    document_hash,
    is_held_out,
    split_again,
    suffices,
    wanted_tokens,
)


def table(documents: list[tuple[int, int]]) -> np.ndarray:
    return np.array([(text_hash, length, 0) for text_hash, length in documents], DOCUMENT)


def test_a_twentieth_is_held_out_by_hash() -> None:
    held_out = sum(is_held_out(document_hash(f"document {number}")) for number in range(20_000))
    assert held_out == pytest.approx(20_000 / HOLD_OUT_EVERY, rel=0.1)


documents = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 400)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(documents, st.integers(0, 4))
def test_splitting_again_keeps_every_token_and_copies_together(pairs: list[tuple[int, int]], copies: int) -> None:
    documents_N = table(pairs + pairs[:copies])
    total = int(documents_N["length"].sum())
    tokens = np.arange(total, dtype=np.uint16)
    wanted = max(1, wanted_tokens(total))
    train, validation, after = split_again(tokens, tokens[:0], documents_N, wanted)
    assert sorted(np.concatenate([train, validation]).tolist()) == tokens.tolist()
    assert len(train) == after["length"][after["held_out"] == 0].sum()
    assert len(validation) <= 2 * wanted
    if total > 2 * len(pairs):  # no document is of one token only
        assert len(validation) > 0
    whole = after[after["hash"] != 0]
    assert not set(whole["hash"][whole["held_out"] == 0]) & set(whole["hash"][whole["held_out"] == 1])
    # What was split can be split again, to hold out more.
    again_train, again_validation, _ = split_again(train, validation, after, min(3 * wanted, total // 3))
    assert len(again_train) + len(again_validation) == total


def test_a_cut_document_has_no_copy() -> None:
    long, copied = (5, 1000), (7, 1000)
    choice = choose(table([copied, long, copied]), 150)
    assert (choice.cut, choice.cut_tokens) == (1, 150)
    assert not choice.held_out_N.any()


def test_at_least_one_sequence_where_there_is_enough_text() -> None:
    assert wanted_tokens(10_000) == 500
    assert wanted_tokens(10_000, least=1025) == 1025
    assert (
        wanted_tokens(2000, least=1025) == 100
    )  # two of three sequences would be left to train on, which there are not
    assert suffices(500, 10_000)
    assert not suffices(500, 10_000, least=1025)
