from __future__ import annotations

import math

import numpy as np
import pytest

from acodm_cli.mixing.baselines.odm import OdmMixer, OdmSettings, exp3_weights, exploration_rate
from tests.mixing.feedback import feedback, observation

THIRD = np.full(3, 1 / 3)


def test_exploration_rate() -> None:
    """min(1/K, √(ln K / (K t))): 1/3 at first, then falling."""
    assert exploration_rate(3, 1) == pytest.approx(1 / 3)
    assert exploration_rate(3, 100) == pytest.approx(math.sqrt(math.log(3) / 300))


def test_exp3_by_hand() -> None:
    """ε = 0.1 now and 0.5 before: exponents 0, 1, 2 and a floor of 0.1."""
    total = 1 + math.e + math.e**2
    expected = [0.7 * power / total + 0.1 for power in (1, math.e, math.e**2)]
    assert exp3_weights(np.array([0.0, 2.0, 4.0]), 0.1, 0.5) == pytest.approx(expected)


def test_one_update_by_hand() -> None:
    """Step 11 of 100, after the warm-up: R̂ = 0.1 · ℓ / π for those drawn; the third was not and keeps its zero."""
    mixer = OdmMixer(THIRD, OdmSettings(smoothing=0.9))
    mixer.observe(feedback((0.5, 0.25, 0.25), step=11, losses=(3.0, 2.0, 4.0), samples=(4, 4, 0)))
    assert mixer.rewards_K == pytest.approx([0.1 * 6, 0.1 * 8, 0.0])
    now, before = exploration_rate(3, 12), exploration_rate(3, 11)
    assert mixer.weights(observation(11)) == pytest.approx(exp3_weights(mixer.rewards_K, now, before))


def test_warm_up_keeps_the_prior_and_learns() -> None:
    mixer = OdmMixer(THIRD, OdmSettings(warmup_share=0.5))
    mixer.observe(feedback((0.5, 0.25, 0.25)))
    assert mixer.weights(observation(11)) == pytest.approx(THIRD)
    assert (mixer.rewards_K > 0).all()


def test_sum_adds_up_tenths() -> None:
    mixer = OdmMixer(THIRD, OdmSettings(accumulate="sum"))
    for _ in range(2):
        mixer.observe(feedback((0.5, 0.25, 0.25), losses=(3.0, 2.0, 4.0)))
    assert mixer.rewards_K == pytest.approx([1.2, 1.6, 3.2])
