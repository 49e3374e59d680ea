from __future__ import annotations

import numpy as np

from acodm_cli.mixing.acodm.reward import AlignmentReward, domain_costs, relative, standardise


def test_importance_corrected_average_by_hand() -> None:
    """Three domains, ξ = 0.9, each H_ij / P_i averaged over the batches that hold i and j. Step 1: 0 and 1. Step 2: 0 and 2.
    Step 3: all."""
    reward = AlignmentReward(3, ema=0.9)
    gram_KK = np.array([[9.0, 1.0, 2.0], [1.0, 9.0, 3.0], [2.0, 3.0, 9.0]])
    first = reward.update(gram_KK, np.array([0.5, 0.25, 0.25]), np.array([True, True, False]))
    # H_02 is not known yet and counts as the rest of its row does; nothing is known of domain 2.
    assert np.allclose(first, [2 * (1 / 0.5), 2 * (1 / 0.25), 0.0])
    assert reward.seen_K.tolist() == [True, True, False]
    second = reward.update(gram_KK, np.array([0.4, 0.4, 0.2]), np.array([True, False, True]))
    assert np.allclose(second, [1 / 0.5 + 2 / 0.4, 2 * (1 / 0.25), 2 * (2 / 0.2)])
    third = reward.update(gram_KK, np.array([0.2, 0.5, 0.3]), np.array([True, True, True]))
    assert np.allclose(
        third,
        [
            (0.9 * 2 + 0.1 * 1 / 0.2) + (0.9 * 5 + 0.1 * 2 / 0.2),
            (0.9 * 4 + 0.1 * 1 / 0.5) + 3 / 0.5,
            (0.9 * 10 + 0.1 * 2 / 0.3) + 3 / 0.3,
        ],
    )


def test_batches_with_every_domain_give_the_formula_of_the_paper() -> None:
    """r̂_i ← ξ r̂_i + (1-ξ) W_i / P_i with W_i = Σ_{j≠i} H_ij."""
    generator = np.random.default_rng(0)
    reward, expected_K = AlignmentReward(5, ema=0.7), None
    for _ in range(20):
        gradients_KP, weights_K = generator.standard_normal((5, 8)), generator.dirichlet(np.ones(5))
        gram_KK = gradients_KP @ gradients_KP.T
        corrected_K = np.array([sum(gram_KK[i, j] for j in range(5) if j != i) / weights_K[i] for i in range(5)])
        expected_K = corrected_K if expected_K is None else 0.7 * expected_K + 0.3 * corrected_K
        assert np.allclose(reward.update(gram_KK, weights_K, np.ones(5, dtype=bool)), expected_K)


def test_rare_domains_are_rewarded_as_frequent_ones() -> None:
    """Two clusters of four domains, H_ij = 1 within and 0 across, so that W_i = 3 for every domain; three domains of the one
    cluster are drawn rarely. W of a batch sums over the domains in it, and would pay the frequent ones more."""
    weights_K = np.array([0.01, 0.01, 0.01, 0.02, 0.05, 0.2, 0.3, 0.4])
    gram_KK = np.kron(np.eye(2), np.ones((4, 4)))
    generator = np.random.default_rng(0)
    reward = AlignmentReward(8, ema=0.9)
    for _ in range(500):
        present_K = generator.multinomial(32, weights_K) > 0
        value_K = reward.update(np.where(np.outer(present_K, present_K), gram_KK, 0), weights_K, present_K)
    assert np.allclose(value_K * weights_K, 3)


def test_standardise_uses_seen_domains_only() -> None:
    value = standardise(np.array([1.0, 3.0, 99.0]), np.array([True, True, False]))
    assert np.allclose(value, [-1.0, 1.0, 0.0])
    assert not standardise(np.ones(3), np.ones(3, dtype=bool)).any()
    assert not standardise(np.array([5.0, 0.0]), np.array([True, False])).any()


def test_self_term_by_hand() -> None:
    """Three domains, ξ = 0.5. A batch may give a domain's cross terms without its self term: that holds, or, before it was
    seen, is taken to be as the others'."""
    reward = AlignmentReward(3, ema=0.5)
    weights_K, all_K = np.array([0.5, 0.25, 0.25]), np.ones(3, dtype=bool)
    gram_KK = np.full((3, 3), 0.5)
    first = reward.update(gram_KK, weights_K, all_K, np.array([1.0, np.nan, 2.0]))
    assert np.allclose(first, [2 + 2, 4 + 5, 4 + 8])
    second = reward.update(gram_KK, weights_K, all_K, np.array([np.nan, 1.0, 4.0]))
    assert np.allclose(second, [2 + 2, 4 + 4, 4 + 12])


def test_relative_rewards_by_hand() -> None:
    all_K = np.ones(3, dtype=bool)
    assert np.allclose(relative(np.array([1.0, 2.0, 3.0]), all_K), [-0.5, 0.0, 0.5])
    assert np.allclose(relative(np.array([1.0, 2.0, 99.0]), np.array([True, True, False])), [-1 / 3, 1 / 3, 0.0])
    assert np.allclose(relative(np.array([2.0, 2.0, 2.02]), all_K), 0, atol=0.01), "alike: near zero, unlike z-scores"
    assert relative(np.array([0.0, 0.0, 1.0, *[0.0] * 9]), np.ones(12, dtype=bool)).max() == 3.0
    assert not relative(np.zeros(3), all_K).any()


def test_costs_are_the_slope_of_the_objective() -> None:
    losses_K, nudge_K = np.array([2.0, 3.0, 5.0]), np.array([1e-6, 0.0, 0.0])
    slopes_K = [
        (np.exp(losses_K + np.roll(nudge_K, i)).mean() - np.exp(losses_K).mean()) / nudge_K.sum() for i in range(3)
    ]
    assert np.allclose(domain_costs(losses_K, "perplexity"), slopes_K / np.mean(slopes_K), rtol=1e-5)
    assert domain_costs(losses_K, "loss").tolist() == [1.0, 1.0, 1.0]
