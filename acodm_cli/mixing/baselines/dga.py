"""DGA (Fan, Grangier, Ablin, 2410.02498): ascent on the alignment of each domain's gradient with the target's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.errors import UsageError
from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, Task, ascend, with_uniform
from acodm_cli.mixing.options import with_options
from acodm_cli.settings import setting


@dataclass(frozen=True)
class DgaSettings:
    """The settings of `DgaMixer`."""

    step_size: float = setting(0.3, above=0)
    """η, the step size of the ascent, by alignments over their mean size."""

    ema: float = setting(0.9, least=0, below=1)
    """The share that the average of the weights keeps per guide pass; 0 for DGA without an average."""

    size_ema: float = setting(0.9, least=0, below=1)
    """The share that the mean size of the alignments keeps per guide pass."""

    uniform_share: float = setting(0.05, least=0, most=1)
    """The share of the uniform distribution that is mixed into the executed weights."""


class DgaMixer(Mixer):
    """Updates α_i ← α_i exp(η a_i / s) / Z at every guide pass, with a_i = ⟨∇ℓ_i, ∇L⟩ and L the weighted sum of the targets'
    losses, and executes the exponential moving average of α. It starts from the prior, which is uniform unless one is given, as
    in the publication.

    The publication's η is for the gradients of its models. Here s, the running mean over domains of |a_i|, divides a, so that
    the step does not depend on the scale of gradients; η and the EMA's share are ours. The publication draws a batch of every
    domain for each update. Here a_i is taken of the training batch: a domain that it lacks keeps its last a_i, one that was
    never seen counts as the mean of the others, and a share of the batch is drawn uniformly.
    """

    name = "dga"
    Settings = DgaSettings
    uses = ("prior",)
    needs_gram = True
    guided = True

    def __init__(self, prior_K: Array, settings: DgaSettings, shares_J: Array) -> None:
        self.own, self.shares_J = settings, shares_J
        self.alpha_K = self.average_K = prior_K
        self.alignments = MovingAverage((len(prior_K), len(shares_J)), ema=0.0)
        self.size = MovingAverage((1,), settings.size_ema)

    @classmethod
    def make(cls, task: Task) -> Mixer:
        own, objective = with_options(cls.Settings(), task.options, cls.name), task.objective
        if not objective.targets:
            raise UsageError("mixer dga needs a target: name one with --target, or give --guide domains")
        if objective.balance != "sum":
            raise UsageError("mixer dga sums the targets' losses; leave out --target-balance")
        return cls(task.prior_K, own, objective.shares(len(objective.targets)))

    def weights(self, observation: Observation) -> Array:
        return with_uniform(self.average_K, self.own.uniform_share)

    def observe(self, feedback: Feedback) -> Report:
        if feedback.guide_KJ is not None:
            self.alignments.update(feedback.guide_KJ)
            alignment_K = self._alignment()
            self.size.update(np.abs(alignment_K).mean(keepdims=True))
            exponents_K = self.own.step_size * alignment_K / np.maximum(self.size.value, np.finfo(float).tiny)
            self.alpha_K = ascend(self.alpha_K, exponents_K)
            self.average_K = self.own.ema * self.average_K + (1 - self.own.ema) * self.alpha_K
        return Report(reward_K=np.where(self.alignments.seen.any(axis=1), self._alignment(), np.nan))

    def _alignment(self) -> Array:
        """Returns a. [K]"""
        seen_KJ, value_KJ = self.alignments.seen, self.alignments.value
        means_J = value_KJ.sum(axis=0) / np.maximum(seen_KJ.sum(axis=0), 1)
        found_K: Array = np.where(seen_KJ, value_KJ, means_J) @ self.shares_J
        return found_K

    def state_dict(self) -> dict[str, Any]:
        parts = {"alignments": self.alignments.state_dict(), "size": self.size.state_dict()}
        return {"alpha": torch.from_numpy(self.alpha_K), "average": torch.from_numpy(self.average_K), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_K, self.average_K = state["alpha"].numpy(), state["average"].numpy()
        self.alignments.load_state_dict(state["alignments"])
        self.size.load_state_dict(state["size"])
