from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.exports import counts
from acodm_cli.exports.counts import blend_counts, largest_remainder


def test_hand_computed() -> None:
    # How far a, b and c are behind at sample i, and which is drawn:
    weights_K = np.array([0.5, 0.25, 0.25])
    drawn = [blend_counts([weights_K], [size])[0].tolist() for size in range(1, 6)]
    # i=0: .5 .25 .25 -> a. i=1: -.5 .25 .25 -> b. i=2: 0 -.5 .5 -> c. i=3: .5 -.25 -.25 -> a. i=4: 0 0 0 -> a.
    assert drawn == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [3, 1, 1]]


def test_stages_do_not_depend_on_each_other() -> None:
    weights_N = [np.array([0.7, 0.3]), np.array([1.0]), np.array([0.2, 0.3, 0.5])]
    together = blend_counts(weights_N, [17, 5, 40])
    for weights_K, size, counts_K in zip(weights_N, [17, 5, 40], together, strict=True):
        np.testing.assert_array_equal(blend_counts([weights_K], [size])[0], counts_K)
        assert counts_K.sum() == size


def test_long_blends_are_followed_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_K = np.random.default_rng(0).dirichlet(np.ones(9))
    exact_K = blend_counts([weights_K], [5000])[0]
    monkeypatch.setattr(counts, "MOST_FOLLOWED", 1000)
    np.testing.assert_allclose(blend_counts([weights_K], [5000])[0], exact_K, atol=8)


def test_largest_remainders_add_up() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        weights_K, total = generator.dirichlet(np.full(7, 0.3)), int(generator.integers(1, 10**9))
        counts_K = largest_remainder(weights_K, total)
        assert counts_K.sum() == total
        assert np.abs(counts_K - weights_K * total).max() < 1
