"""DoGE: ascent on each domain's gradient alignment (Fan et al., 2310.15393, equation 5), online on the training batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, ascend, with_uniform


@dataclass(frozen=True)
class DogeSettings:
    """mu: μ, the strength of the Bregman regularisation; step sizes are η_t / μ with η_t the learning rate. uniform_share: of the
    uniform distribution mixed into the weights that are executed."""

    mu: float = 0.05
    uniform_share: float = 0.05

    def __post_init__(self) -> None:
        if not (self.mu > 0 and 0 <= self.uniform_share <= 1):
            raise ValueError("mu must be above 0 and uniform_share in [0, 1]")


class DogeMixer(Mixer):
    """α_i ← α_i exp(η_t W_i / μ) / Z with W_i = ⟨∇ℓ_i, Σ_j ∇ℓ_j⟩, domain i itself included.

    The publication trains a proxy on uniform batches this way and uses the average of α for the target; here α is drawn from at
    once, and `fixed` takes the average of the schedule that comes of it, uniform share included. ⟨∇ℓ_i, ∇ℓ_j⟩ of domains that a batch lacks is what it
    was last, as the authors' code keeps the last gradient of each domain; a pair that was never seen counts as zero.
    """

    name = "doge"
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

    def settings(self) -> dict[str, Any]:
        return vars(self.own)

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": torch.from_numpy(self.alpha_K), "last_gram": self.last_gram.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K = state["alpha"].numpy()
        self.last_gram.load_state_dict(state["last_gram"])
