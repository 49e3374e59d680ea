"""PiKE: weights by gradient norms and gradient noise (Li et al., 2502.06244, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, ascend, with_uniform


@dataclass(frozen=True)
class PikeSettings:
    """zeta1, zeta2: ζ₁ of the squared gradient norms and ζ₂ of the noise. update_share: share of the run's steps between updates.
    ema: of the estimates between updates. uniform_share: of the uniform distribution mixed into the executed weights."""

    zeta1: float = 0.5
    zeta2: float = 0.5
    update_share: float = 0.01
    ema: float = 0.9
    uniform_share: float = 0.05

    def __post_init__(self) -> None:
        shares = (self.update_share, self.ema, self.uniform_share)
        if self.zeta1 < 0 or self.zeta2 < 0 or not all(0 <= share < 1 for share in shares):
            raise ValueError("zeta1 and zeta2 must not be negative; update_share, ema and uniform_share be in [0, 1)")


def gradient_noise(gram_K: Array, self_K: Array, samples_K: Array) -> Array:
    """σ_i²: variance of a sequence's gradient. Of the mean of n sequences, E‖ĝ_i‖² = ‖g_i‖² + σ_i²/n.

    gram_K: ‖ĝ_i‖², the diagonal of the Gram matrix. self_K: unbiased ‖g_i‖², NaN where unknown. [K]
    """
    return np.maximum(samples_K * (gram_K - self_K), 0.0)


class PikeMixer(Mixer):
    """w_i ← w_i exp(ζ₁ ‖g_i‖² - ζ₂ σ_i² / 2B) / Z every few steps, for a batch of B sequences."""

    name = "pike"
    needs_gram = True

    def __init__(self, prior_K: Array, settings: PikeSettings) -> None:
        self.own = settings
        self.alpha_K = prior_K
        self.norms, self.noise = MovingAverage(prior_K.shape, settings.ema), MovingAverage(prior_K.shape, settings.ema)

    def weights(self, observation: Observation) -> Array:
        return with_uniform(self.alpha_K, self.own.uniform_share)

    def observe(self, feedback: Feedback) -> Report:
        assert feedback.gram_KK is not None
        assert feedback.self_K is not None
        self.norms.update(feedback.self_K)
        self.noise.update(gradient_noise(np.diag(feedback.gram_KK), feedback.self_K, feedback.samples_K))
        batch = feedback.samples_K.sum()
        exponents_K = self.own.zeta1 * self.norms.value - self.own.zeta2 * self.noise.value / (2 * batch)
        known_K = self.norms.seen & self.noise.seen
        after = feedback.next_observation
        if after.step % max(1, round(self.own.update_share * after.total_steps)) == 0:
            fill = exponents_K[known_K].mean() if known_K.any() else 0.0
            self.alpha_K = ascend(self.alpha_K, np.where(known_K, exponents_K, fill))
        return Report(reward_K=np.where(known_K, exponents_K, np.nan))

    def settings(self) -> dict[str, Any]:
        return vars(self.own)

    def state_dict(self) -> dict[str, Any]:
        averages = {"norms": self.norms.state_dict(), "noise": self.noise.state_dict()}
        return {"alpha": torch.from_numpy(self.alpha_K), **averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K = state["alpha"].numpy()
        self.norms.load_state_dict(state["norms"])
        self.noise.load_state_dict(state["noise"])
