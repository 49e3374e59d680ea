"""DoGE (Fan et al., 2310.15393, equation 5): ascent on each domain's gradient alignment, online on training batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, ascend, with_uniform
from acodm_cli.settings import setting


@dataclass(frozen=True)
class DogeSettings:
    """The settings of `DogeMixer`."""

    mu: float = setting(0.05, above=0)
    """μ, the strength of the Bregman regularisation. Step sizes are η_t / μ with η_t the learning rate."""

    uniform_share: float = setting(0.05, least=0, most=1)
    """The share of the uniform distribution that is mixed into the executed weights."""


class DogeMixer(Mixer):
    """Updates α_i ← α_i exp(η_t W_i / μ) / Z with W_i = ⟨∇ℓ_i, Σ_j ∇ℓ_j⟩, where the sum includes domain i itself.

    The publication trains a proxy on uniform batches in this way and uses the average of α for the target. Here the
    batches are drawn with α at once; for a target, `fixed` takes the average of the resulting schedule, whose weights
    include the uniform share. Where a batch lacks a domain of a pair, ⟨∇ℓ_i, ∇ℓ_j⟩ keeps its last value, as the
    authors' code keeps the last gradient of each domain. A pair that was never seen counts as zero.
    """

    name = "doge"
    Settings = DogeSettings
    uses = ("prior",)
    needs_gram = True

    def __init__(self, prior_K: Array, settings: DogeSettings) -> None:
        self.own = settings
        self.alpha_K = prior_K
        self.last_gram = MovingAverage((len(prior_K), len(prior_K)), ema=0.0)

    def weights(self, observation: Observation) -> Array:
        return with_uniform(self.alpha_K, self.own.uniform_share)

    def observe(self, feedback: Feedback) -> Report:
        assert feedback.gram_KK is not None
        assert feedback.self_K is not None
        present_K = feedback.samples_K > 0
        gram_KK = np.where(np.outer(present_K, present_K), feedback.gram_KK, np.nan)
        np.fill_diagonal(gram_KK, feedback.self_K)
        self.last_gram.update(gram_KK)
        alignment_K = self.last_gram.value.sum(axis=1)
        self.alpha_K = ascend(self.alpha_K, feedback.observation.learning_rate / self.own.mu * alignment_K)
        return Report(reward_K=alignment_K)

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": torch.from_numpy(self.alpha_K), "last_gram": self.last_gram.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K = state["alpha"].numpy()
        self.last_gram.load_state_dict(state["last_gram"])
