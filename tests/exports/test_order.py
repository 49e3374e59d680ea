from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.exports.order import Order, apportioned


def test_hand_computed() -> None:
    # Of shares 5, 3 and 2, whoever has the least (2 counts + 1) / share is next: 1/5, 1/3, 1/2 and 3/5, then 1 for all three.
    assert [apportioned([5, 3, 2], total) for total in range(6)] == [
        [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [3, 1, 1],
    ]  # fmt: skip


def test_counts_grow_add_up_and_keep_to_their_shares() -> None:
    generator = np.random.default_rng(0)
    for num_sources in (1, 2, 7, 22):
        shares = [round(weight * 2**40) for weight in generator.dirichlet(np.full(num_sources, 0.4))]
        shares[-1] = 0 if num_sources > 2 else shares[-1]
        before = [0] * num_sources
        for total in range(1, 400):
            counts = apportioned(shares, total)
            assert sum(counts) == total
            assert sorted(now - then for now, then in zip(counts, before, strict=True))[-2:] in ([0, 1], [1])
            assert (
                max(abs(c - total * s / sum(shares)) for c, s in zip(counts, shares, strict=True)) < num_sources / 4 + 1
            )
            before = counts


@pytest.mark.parametrize("ranks", [1, 8, 48])
def test_ranks_share_what_one_draws(ranks: int) -> None:
    stages = [(3, [0.5, 0.25, 0.25]), (5, [0.0, 0.125, 0.875])]
    orders = [Order(stages, 96, rank, ranks, seed=0) for rank in range(ranks)]
    for step in range(6):  # after the last stage, its weights hold
        per_rank = 96 // ranks
        drawn = [order.source(step * per_rank + place) for order in orders for place in range(per_rank)]
        assert sorted(drawn) == sorted(Order(stages, 96, 0, 1, seed=0).in_step(step))
        assert np.bincount(drawn, minlength=3).tolist() == ([48, 24, 24] if step < 3 else [0, 12, 84])


def test_no_rank_is_left_with_one_source() -> None:
    """Each reads its own part of every source, so none may always draw from the same."""
    orders = [Order([(400, [0.5, 0.5])], 2, rank, 2, seed=0) for rank in range(2)]
    drawn = np.array([[order.source(step) for step in range(400)] for order in orders])
    assert (drawn.sum(axis=0) == 1).all()
    assert abs(drawn.mean(axis=1) - 0.5).max() < 0.1
