"""DoReMi: ascent on the excess loss over a reference model (Xie et al., 2305.10429, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, ascend, with_uniform


@dataclass(frozen=True)
class DoremiSettings:
    """reference: folder of the reference model, as `--save-model` writes it; same tokenizer. step_size: η. smoothing: c, the share
    of the uniform distribution. uniform_share: of the uniform distribution mixed into the weights that are executed."""

    reference: str | None = None
    step_size: float = 1.0
    smoothing: float = 1e-3
    uniform_share: float = 0.05

    def __post_init__(self) -> None:
        if not (self.step_size > 0 and 0 <= self.smoothing <= 1 and 0 <= self.uniform_share <= 1):
            raise ValueError("step_size must be above 0, smoothing and uniform_share in [0, 1]")


class DoremiMixer(Mixer):
    """α'_i ← α_i exp(η λ_i), α ← (1-c) α' / Σ α' + c / K, with λ_i the mean over domain i's tokens of max(ℓ - ℓ_ref, 0).

    The publication draws the proxy's batches uniformly and weights their losses by α; here α is drawn from, which has the same
    mean gradient. So that every domain's excess goes on being seen, as it is there, a share of the batch is drawn uniformly, and a
    domain that a batch lacks keeps its last excess: without, a domain with all the weight would keep it for ever. The publication
    trains the target with the average of α: `fixed` on the schedule that comes of it, whose weights hold the uniform share.
    """

    name = "doremi"
    needs_reference = True

    def __init__(self, prior_K: Array, settings: DoremiSettings) -> None:
        self.own = settings
        self.alpha_K = prior_K
        self.excess_K: Array = np.zeros(len(prior_K))

    def weights(self, observation: Observation) -> Array:
        return with_uniform(self.alpha_K, self.own.uniform_share)

    def observe(self, feedback: Feedback) -> Report:
        assert feedback.excess_K is not None
        self.excess_K = np.where(np.isnan(feedback.excess_K), self.excess_K, feedback.excess_K)
        share, ascended_K = self.own.smoothing, ascend(self.alpha_K, self.own.step_size * self.excess_K)
        self.alpha_K = (1 - share) * ascended_K + share / len(ascended_K)
        return Report(reward_K=feedback.excess_K)

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.own).items() if name != "reference"}  # a path of this machine

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": torch.from_numpy(self.alpha_K), "excess": torch.from_numpy(self.excess_K)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K, self.excess_K = state["alpha"].numpy(), state["excess"].numpy()
