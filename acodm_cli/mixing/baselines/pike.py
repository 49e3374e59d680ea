"""PiKE (Li et al., 2502.06244, algorithm 1): weights follow gradient norms and gradient noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, ascend, with_uniform
from acodm_cli.settings import setting


@dataclass(frozen=True)
class PikeSettings:
    """The settings of `PikeMixer`."""

    zeta1: float = setting(0.5, least=0)
    """ζ₁, the weight of the squared gradient norms."""

    zeta2: float = setting(0.5, least=0)
    """ζ₂, the weight of the gradient noise."""

    update_share: float = setting(0.01, least=0, below=1)
    """The share of the run's steps between updates of the weights."""

    ema: float = setting(0.9, least=0, below=1)
    """The share that a moving average of the estimates keeps per step."""

    uniform_share: float = setting(0.05, least=0, below=1)
    """The share of the uniform distribution that is mixed into the executed weights."""


def gradient_noise(gram_K: Array, self_K: Array, samples_K: Array) -> Array:
    """Returns σ_i², the variance of the gradient of one sequence. [K]

    The mean gradient ĝ_i of n sequences has E‖ĝ_i‖² = ‖g_i‖² + σ_i²/n. gram_K: ‖ĝ_i‖², the diagonal of the Gram matrix.
    self_K: the unbiased ‖g_i‖², NaN where it is unknown. samples_K: n.
    """
    return np.maximum(samples_K * (gram_K - self_K), 0.0)


class PikeMixer(Mixer):
    """Updates w_i ← w_i exp(ζ₁ ‖g_i‖² - ζ₂ σ_i² / 2B) / Z every few steps, for a batch of B sequences."""

    name = "pike"
    Settings = PikeSettings
    uses = ("prior",)
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

    def state_dict(self) -> dict[str, Any]:
        averages = {"norms": self.norms.state_dict(), "noise": self.noise.state_dict()}
        return {"alpha": torch.from_numpy(self.alpha_K), **averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K = state["alpha"].numpy()
        self.norms.load_state_dict(state["norms"])
        self.noise.load_state_dict(state["noise"])
