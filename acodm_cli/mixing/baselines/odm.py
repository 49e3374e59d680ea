"""Online Data Mixing (Albalak et al., 2312.02406, algorithm 1): an Exp3 bandit whose reward is a domain's loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report
from acodm_cli.settings import setting


@dataclass(frozen=True)
class OdmSettings:
    """The settings of `OdmMixer`."""

    accumulate: Literal["average", "sum"] = "average"
    """`average` keeps a moving average of the estimated rewards, as the paper does; `sum` adds up a tenth of them, as
    its code does."""

    smoothing: float = setting(0.9, least=0, below=1)
    """α of that average."""

    warmup_share: float = setting(0.01, least=0, most=1)
    """The share of the run's steps with the prior's weights."""


def exploration_rate(num_domains: int, step: int) -> float:
    """Returns the exploration rate ε_t = min(1/K, √(ln K / (K t))) of step t, from 1."""
    return min(1 / num_domains, math.sqrt(math.log(num_domains) / (num_domains * step)))


def exp3_weights(rewards_K: Array, epsilon: float, previous_epsilon: float) -> Array:
    """Returns Exp3's weights π_i = (1 - K ε_t) exp(ε_{t-1} R̂_i) / Σ_j exp(ε_{t-1} R̂_j) + ε_t. [K]"""
    exponents_K = previous_epsilon * rewards_K
    powers_K = np.exp(exponents_K - exponents_K.max())
    return (1 - len(rewards_K) * epsilon) * powers_K / powers_K.sum() + epsilon


class OdmMixer(Mixer):
    """Updates R̂_i ← α R̂_i + (1-α) ℓ_i / π_i for the domains in the batch, and executes Exp3's weights."""

    name = "odm"
    Settings = OdmSettings
    uses = ("prior",)

    def __init__(self, prior_K: Array, settings: OdmSettings) -> None:
        self.prior_K = prior_K
        self.own = settings
        self.rewards_K: Array = np.zeros(len(prior_K))
        self.weights_K = prior_K

    def weights(self, observation: Observation) -> Array:
        return self.weights_K

    def observe(self, feedback: Feedback) -> Report:
        drawn_K = feedback.samples_K > 0
        after = feedback.next_observation
        # A domain that --max-epochs has closed may have no probability, and still get a last sequence that it is owed.
        estimates_K = after.losses_K / np.maximum(feedback.weights_K, 1e-3 * self.prior_K)
        if self.own.accumulate == "average":
            keep = self.own.smoothing
            updated_K = keep * self.rewards_K + (1 - keep) * estimates_K
        else:
            updated_K = self.rewards_K + estimates_K / 10
        self.rewards_K = np.where(drawn_K, updated_K, self.rewards_K)
        if after.step > self.own.warmup_share * after.total_steps:
            num_domains = len(self.prior_K)
            rates = exploration_rate(num_domains, after.step + 1), exploration_rate(num_domains, after.step)
            self.weights_K = exp3_weights(self.rewards_K, *rates)
        return Report(reward_K=self.rewards_K)

    def state_dict(self) -> dict[str, Any]:
        return {"rewards": torch.from_numpy(self.rewards_K), "weights": torch.from_numpy(self.weights_K)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rewards_K, self.weights_K = state["rewards"].numpy(), state["weights"].numpy()
