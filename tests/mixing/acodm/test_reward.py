from __future__ import annotations

import numpy as np

from acodm_cli.mixing.acodm.reward import AlignmentReward, standardise


def test_importance_corrected_average_by_hand() -> None:
    """Three domains, ξ = 0.9. Step 1: W/P = (1/0.5, 3/0.3, absent). Step 2: (2/0.4, absent, 6/0.2). Step 3: all."""
    reward = AlignmentReward(3, ema=0.9)
    first = reward.update(np.array([1.0, 3.0, 0.0]), np.array([0.5, 0.3, 0.2]), np.array([True, True, False]))
    assert np.allclose(first, [2.0, 10.0, 0.0])
    second = reward.update(np.array([2.0, 0.0, 6.0]), np.array([0.4, 0.4, 0.2]), np.array([True, False, True]))
    assert np.allclose(second, [0.9 * 2 + 0.1 * 5, 10.0, 30.0])
    third = reward.update(np.array([-1.0, 1.0, 1.0]), np.array([0.25, 0.25, 0.5]), np.array([True, True, True]))
    assert np.allclose(third, [0.9 * 2.3 + 0.1 * -4, 0.9 * 10 + 0.1 * 4, 0.9 * 30 + 0.1 * 2])


def test_standardise_uses_seen_domains_only() -> None:
    value = standardise(np.array([1.0, 3.0, 99.0]), np.array([True, True, False]))
    assert np.allclose(value, [-1.0, 1.0, 0.0])
    assert not standardise(np.ones(3), np.ones(3, dtype=bool)).any()
    assert not standardise(np.array([5.0, 0.0]), np.array([True, False])).any()


def test_self_term_has_an_average_of_its_own() -> None:
    """Three domains, ξ = 0.5. A batch may give W of a domain without its self term, and the latter then holds."""
    reward = AlignmentReward(3, ema=0.5)
    weights_K, all_K = np.array([0.5, 0.25, 0.25]), np.ones(3, dtype=bool)
    first = reward.update(np.array([1.0, 1.0, 1.0]), weights_K, all_K, np.array([1.0, np.nan, 2.0]))
    assert np.allclose(first, [2 + 2, 4, 4 + 8])
    second = reward.update(np.array([3.0, 1.0, 1.0]), weights_K, all_K, np.array([np.nan, 1.0, 4.0]))
    assert np.allclose(second, [4 + 2, 4 + 4, 4 + 12])
