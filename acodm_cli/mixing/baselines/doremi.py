"""DoReMi: ascent on the excess loss over a reference model (Xie et al., 2305.10429, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, ascend


@dataclass(frozen=True)
class DoremiSettings:
    """reference: folder of the reference model, as `--save-model` writes it; same tokenizer. step_size: η. smoothing: c, the share
    of the uniform distribution."""

    reference: str | None = None
    step_size: float = 1.0
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.step_size > 0 and 0 <= self.smoothing <= 1):
            raise ValueError("step_size must be above 0 and smoothing in [0, 1]")


class DoremiMixer(Mixer):
    """α'_i ← α_i exp(η λ_i), α ← (1-c) α' / Σ α' + c / K, with λ_i the mean over domain i's tokens of max(ℓ - ℓ_ref, 0).

    The publication draws the proxy's batches uniformly and weights their losses by α; here α is drawn from, which has the same
    mean gradient. It trains the target with the average of α: `fixed` on the schedule that comes of it.
    """

    name = "doremi"
    needs_reference = True

    def __init__(self, prior_K: Array, settings: DoremiSettings) -> None:
        self.own = settings
        self.alpha_K = prior_K

    def weights(self, observation: Observation) -> Array:
        return self.alpha_K

    def observe(self, feedback: Feedback) -> Report:
        assert feedback.excess_K is not None
        excess_K = np.nan_to_num(feedback.excess_K)  # a domain that was not drawn: no evidence of excess
        share = self.own.smoothing
        self.alpha_K = (1 - share) * ascend(self.alpha_K, self.own.step_size * excess_K) + share / len(excess_K)
        return Report(reward_K=feedback.excess_K)

    def settings(self) -> dict[str, Any]:
        return {"step_size": self.own.step_size, "smoothing": self.own.smoothing}

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": torch.from_numpy(self.alpha_K)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K = state["alpha"].numpy()
