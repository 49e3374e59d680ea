from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.mixing.baselines.ado import AdoMixer, AdoSettings, ScalingLaw, fit_scaling_law
from tests.mixing.feedback import feedback, observation

PRIOR = np.array([0.5, 0.25, 0.25])
LAW = ScalingLaw(np.array([1.0, 0.0, 2.0]), np.array([8.0, 6.0, 3.0]), np.array([0.5, 0.1, 0.8]))


def losses_of(sequences_T: np.ndarray) -> np.ndarray:
    return LAW.irreducible_K + LAW.scale_K * sequences_T[:, None] ** -LAW.exponent_K


def test_fit_finds_the_law_that_made_the_losses() -> None:
    sequences_T = np.arange(8.0, 4000.0, 8.0)
    found = fit_scaling_law(sequences_T, losses_of(sequences_T))
    for value, expected in zip(vars(found).values(), vars(LAW).values(), strict=True):
        assert value == pytest.approx(expected, abs=1e-6)


def test_fit_of_rising_losses_expects_no_progress() -> None:
    sequences_T = np.arange(8.0, 800.0, 8.0)
    found = fit_scaling_law(sequences_T, 2 + 1e-3 * np.stack([sequences_T] * 3, axis=1))
    assert found.speed(800.0) == pytest.approx([0.0] * 3)
    assert (found.irreducible_K >= 0).all()


def test_speed_is_the_slope_of_the_law() -> None:
    before, after = losses_of(np.array([999.0, 1001.0]))
    assert LAW.speed(1000.0) == pytest.approx((before - after) / 2, rel=1e-5)


def test_one_update_by_hand() -> None:
    """ρ ∝ μ h^s speed with h = 0.9 h + 0.1 shares, then π = 0.9 ρ̄ + 0.1 ρ. A law is there, and not due to be fitted again."""
    mixer = AdoMixer(PRIOR, AdoSettings(start_share=0.0, refit_share=1.0, ignore_share=0.0, least=0.0))
    mixer.law = LAW
    mixer.observe(feedback((0.5, 0.25, 0.25), step=11, samples=(6, 2, 0)))
    history_K = 0.9 * PRIOR + 0.1 * np.array([0.75, 0.25, 0.0])
    preference_K = PRIOR * np.sqrt(history_K) * LAW.speed(8.0)
    preference_K /= preference_K.sum()
    assert mixer.weights(observation(11)) == pytest.approx(0.9 * PRIOR + 0.1 * preference_K)
    assert mixer.average_K == pytest.approx(PRIOR + (preference_K - PRIOR) / 12)


def test_starts_with_the_prior() -> None:
    mixer = AdoMixer(PRIOR, AdoSettings(start_share=0.5))
    for step in range(1, 49):
        mixer.observe(feedback((0.5, 0.25, 0.25), step=step))
        assert mixer.weights(observation(step)) == pytest.approx(PRIOR)
