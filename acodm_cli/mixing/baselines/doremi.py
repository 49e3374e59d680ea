"""DoReMi (Xie et al., 2305.10429, algorithm 1): ascent on the excess loss over a reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.errors import UsageError
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, Task, ascend, with_uniform
from acodm_cli.mixing.options import with_options
from acodm_cli.settings import setting


@dataclass(frozen=True)
class DoremiSettings:
    """The settings of `DoremiMixer`."""

    reference: str | None = None
    """The folder of the reference model, as --save-model writes it. It must have the run's tokenizer."""

    step_size: float = setting(1.0, above=0)
    """η, the step size of the ascent."""

    smoothing: float = setting(1e-3, least=0, most=1)
    """c, the share of the uniform distribution in every step of the ascent."""

    uniform_share: float = setting(0.05, least=0, most=1)
    """The share of the uniform distribution that is mixed into the executed weights."""


class DoremiMixer(Mixer):
    """Updates α'_i ← α_i exp(η λ_i) and α ← (1-c) α' / Σ α' + c / K, where λ_i is the excess loss of domain i: the mean
    over its tokens of max(ℓ - ℓ_ref, 0).

    The publication draws the proxy's batches uniformly and weights their losses by α. Here the batches are drawn with
    α, which has the same mean gradient. A share of the batch is drawn uniformly, and a domain that a batch lacks keeps
    its last excess, so that every domain's excess is still seen, as it is in the publication. Otherwise a domain with
    all the weight would keep it for ever. The publication trains the target with the average of α. Here `fixed` takes
    the average of the resulting schedule, whose weights include the uniform share.
    """

    name = "doremi"
    Settings = DoremiSettings
    files = ("reference",)
    uses = ("prior",)

    def __init__(self, prior_K: Array, settings: DoremiSettings) -> None:
        self.own = settings
        self.reference = settings.reference
        self.alpha_K = prior_K
        self.excess_K: Array = np.zeros(len(prior_K))

    @classmethod
    def make(cls, task: Task) -> Mixer:
        own = with_options(cls.Settings(), task.options, cls.name)
        if own.reference is None:
            raise UsageError(
                "mixer doremi needs --mixer-option reference=FOLDER, a model of the same tokenizer, for example of "
                "acodm proxy-train --mixer natural --save-model FOLDER"
            )
        return cls(task.prior_K, own)

    def weights(self, observation: Observation) -> Array:
        return with_uniform(self.alpha_K, self.own.uniform_share)

    def observe(self, feedback: Feedback) -> Report:
        assert feedback.excess_K is not None
        self.excess_K = np.where(np.isnan(feedback.excess_K), self.excess_K, feedback.excess_K)
        share, ascended_K = self.own.smoothing, ascend(self.alpha_K, self.own.step_size * self.excess_K)
        self.alpha_K = (1 - share) * ascended_K + share / len(ascended_K)
        return Report(reward_K=feedback.excess_K)

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": torch.from_numpy(self.alpha_K), "excess": torch.from_numpy(self.excess_K)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K, self.excess_K = state["alpha"].numpy(), state["excess"].numpy()
