from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.mixing.acodm.fixed_step import GuidedReward
from acodm_cli.mixing.mixer import Array

K, P, BATCH = 4, 12, 16


def gradients(seed: int) -> tuple[Array, Array]:
    """(g [K, P], ∇J [P])"""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((K, P)), generator.standard_normal(P)


def told(g_KP: Array, target_P: Array, crowding: float = 1.0) -> GuidedReward:
    """What knows these gradients, without any noise."""
    reward, gram_KK = GuidedReward(K, 1, 0.9, 0.9, crowding), g_KP @ g_KP.T
    for _ in range(3):
        reward.update(gram_KK, np.diag(gram_KK), (g_KP @ target_P)[:, None], np.full(K, BATCH / K))
    return reward


def sizes(g_KP: Array, weights_K: Array, noise: float = 0.0) -> Array:
    """s, by hand."""
    squares_K = (g_KP**2).sum(axis=1) + noise
    return np.sqrt(squares_K + weights_K @ squares_K)


def test_it_is_the_derivative_of_the_gain_of_a_step_of_fixed_size() -> None:
    g_KP, target_P = gradients(0)
    weights_K = np.array([0.4, 0.3, 0.2, 0.1])

    def gained(weights_K: Array) -> float:
        mixed_P = weights_K @ g_KP
        return float(mixed_P @ target_P / np.linalg.norm(mixed_P))

    by_hand_K = np.array([(gained(weights_K + e_K) - gained(weights_K - e_K)) / 2e-6 for e_K in 1e-6 * np.eye(K)])
    found_K, size = told(g_KP, target_P).value(np.ones(1), weights_K, BATCH)
    norms_K = sizes(g_KP, weights_K)
    assert found_K * norms_K == pytest.approx(by_hand_K * np.linalg.norm(weights_K @ g_KP), rel=1e-6)
    assert size == pytest.approx(np.abs(g_KP @ target_P / norms_K).mean())


def test_without_crowding_it_is_the_gain_over_the_size_of_the_gradient() -> None:
    g_KP, target_P = gradients(1)
    found_K, _ = told(g_KP, target_P, crowding=0.0).value(np.ones(1), np.full(K, 1 / K), BATCH)
    assert found_K == pytest.approx(g_KP @ target_P / sizes(g_KP, np.full(K, 1 / K)))


def test_several_targets_count_by_their_costs() -> None:
    g_KP, target_P = gradients(2)
    reward, gram_KK = GuidedReward(K, 2, 0.9, 0.9, 0.0), g_KP @ g_KP.T
    guide_KJ = np.stack([g_KP @ target_P, -3 * g_KP @ target_P], axis=1)
    for _ in range(2):
        reward.update(gram_KK, np.diag(gram_KK), guide_KJ, np.full(K, 4.0))
    norms_K = sizes(g_KP, np.full(K, 1 / K))
    found_K, _ = reward.value(np.array([0.75, 0.25]), np.full(K, 1 / K), BATCH)
    assert found_K == pytest.approx(np.zeros(K), abs=1e-9)
    found_K, _ = reward.value(np.array([0.5, 0.5]), np.full(K, 1 / K), BATCH)
    assert found_K == pytest.approx(-(g_KP @ target_P) / norms_K)


def noisy_step(
    g_KP: Array, target_P: Array, samples_K: Array, sigma: float, generator: np.random.Generator
) -> tuple[Array, Array, Array]:
    """(H, unbiased squares, ⟨g_i, ∇J⟩) of a batch whose sequences have gradients g_i + noise of variance σ² in all; halves of it."""
    noise_KP = (
        generator.standard_normal((2, K, P)) * sigma / np.sqrt(P) / np.sqrt(np.maximum(samples_K, 1) / 2)[:, None]
    )
    halves = g_KP + noise_KP
    whole_KP = halves.mean(axis=0)
    self_K = np.where(samples_K >= 2, (halves[0] * halves[1]).sum(axis=1), np.nan)
    guide_K = np.where(samples_K > 0, whole_KP @ target_P, np.nan)
    return whole_KP @ whole_KP.T, self_K, guide_K[:, None]


def test_the_size_of_a_gradient_holds_the_noise_of_its_share_of_a_batch() -> None:
    """n = ‖g‖² + σ²/B, whatever the number of sequences by which it was seen."""
    g_KP, target_P = gradients(3)
    generator, reward = np.random.default_rng(0), GuidedReward(K, 1, 0.9, 0.998, 1.0)
    samples_K = np.array([2.0, 4.0, 8.0, 32.0])
    for _ in range(4000):
        reward.update(*noisy_step(g_KP, target_P, samples_K, 6.0, generator), samples_K)
    weights_K = np.array([0.1, 0.2, 0.3, 0.4])
    found_K = reward.fixed_step.sizes(weights_K, BATCH)
    assert found_K == pytest.approx(sizes(g_KP, weights_K, 36 / BATCH), rel=0.1)


def test_a_domain_of_which_little_is_known_is_neither_preferred_nor_avoided() -> None:
    """All domains are alike but for the last, which is better. Seen in one look it is believed less than seen in many."""
    generator = np.random.default_rng(0)
    target_P = np.eye(P)[0]
    g_KP = np.tile(0.1 * target_P, (K, 1)) + np.eye(K, P, 1)
    g_KP[-1] = 0.3 * target_P + np.eye(K, P, 1)[-1]
    spread = {}
    for name, rare in (("rare", 40), ("frequent", 1)):
        reward, found = GuidedReward(K, 1, 0.95, 0.95, 0.0), []
        for step in range(400):
            samples_K = np.array([8.0, 8.0, 8.0, 8.0 if rare == 1 else float(step % rare == 0)])
            reward.update(*noisy_step(g_KP, target_P, samples_K, 2.0, generator), samples_K)
            found.append(reward.value(np.ones(1), np.array([0.3, 0.3, 0.3, 0.1]), BATCH)[0])
        late_SK = np.array(found[100:])
        advantage_SK = late_SK - (late_SK @ np.array([0.3, 0.3, 0.3, 0.1]))[:, None]
        spread[name] = float(np.median(np.abs(advantage_SK[:, -1])))
        if name == "frequent":
            assert (advantage_SK.argmax(axis=1) == K - 1).mean() > 0.95
    assert spread["rare"] < 0.5 * spread["frequent"]


def test_a_domain_that_was_never_seen_has_the_mean_reward_of_the_mixture() -> None:
    g_KP, target_P = gradients(5)
    reward, gram_KK, weights_K = GuidedReward(K, 1, 0.9, 0.9, 0.5), g_KP @ g_KP.T, np.array([0.4, 0.3, 0.2, 0.1])
    samples_K = np.array([8.0, 4.0, 4.0, 0.0])
    guide_KJ = np.where(samples_K > 0, g_KP @ target_P, np.nan)[:, None]
    for _ in range(3):
        reward.update(gram_KK, np.where(samples_K > 0, np.diag(gram_KK), np.nan), guide_KJ, samples_K)
    found_K, _ = reward.value(np.ones(1), weights_K, BATCH)
    assert found_K[-1] == pytest.approx(found_K @ weights_K)
    assert np.ptp(found_K) > 0.1


def test_absent_domains_and_steps_without_a_look_change_nothing_of_what_is_known() -> None:
    g_KP, target_P = gradients(4)
    reward = told(g_KP, target_P)
    before_K, gram_KK = reward.gains_KJ.copy(), g_KP @ g_KP.T
    samples_K = np.array([8.0, 8.0, 0.0, 0.0])
    absent_KK = np.where(np.outer(samples_K, samples_K) > 0, gram_KK, 0.0)
    self_K, guide_KJ = np.where(samples_K > 0, np.diag(gram_KK), np.nan), np.full((K, 1), np.nan)
    reward.update(absent_KK, self_K, None, samples_K)
    reward.update(absent_KK, self_K, guide_KJ, samples_K)
    assert reward.gains_KJ == pytest.approx(before_K)
    assert np.diag(reward.fixed_step.pairs.value()) == pytest.approx(np.diag(gram_KK))
    again = GuidedReward(K, 1, 0.9, 0.9, 1.0)
    assert again.value(np.ones(1), np.full(K, 1 / K), BATCH)[0].tolist() == [0.0] * K
    again.update(gram_KK, np.diag(gram_KK), (g_KP @ target_P)[:, None], np.full(K, 4.0))
    first_K, size = again.value(np.ones(1), np.full(K, 1 / K), BATCH)
    assert size > 0
    assert np.ptp(first_K) < 1e-12, "one look says nothing of its noise"
    again.load_state_dict(reward.state_dict())
    for one in (reward, again):
        one.update(gram_KK, np.diag(gram_KK), (g_KP @ target_P)[:, None] + 1, np.full(K, 4.0))
    assert np.array_equal(
        again.value(np.ones(1), np.full(K, 1 / K), BATCH)[0], reward.value(np.ones(1), np.full(K, 1 / K), BATCH)[0]
    )
