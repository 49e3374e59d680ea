"""The one seam between the training loop and everything that decides domain weights.

The loop asks `weights(observation)` before a step, draws the batch with them, and reports what happened with
`observe(feedback)`. Static weights, replay, a frozen policy, every baseline and the AC-ODM learner are mixers.

Shape letters: K domains, L depths at which weight norms are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """What the trainer knows before it draws the batch of `step`.

    step: index of the coming step, from 0. total_steps, total_tokens: the run's budget. tokens: predicted tokens
    so far. learning_rate: of the coming step. samples_K: sequences drawn per domain in the last batch. losses_K: last known mean loss per domain in
    nats; a domain that was not in the last batch keeps its value. previous_losses_K: the same one step earlier.
    max_loss: ln(vocabulary), the loss of a uniform prediction, by which losses become scale-free.
    weight_norms_L, initial_norms_L, update_norms_L: L2 norms of the selected weights now, at the start of the
    run, and of the last update.
    """

    step: int
    total_steps: int
    tokens: int
    total_tokens: int
    learning_rate: float
    samples_K: Array
    losses_K: Array
    previous_losses_K: Array
    max_loss: float
    weight_norms_L: Array
    initial_norms_L: Array
    update_norms_L: Array

    @property
    def progress(self) -> float:
        return self.step / self.total_steps


@dataclass(frozen=True)
class Feedback:
    """What happened in one step.

    weights_K: the executed weights, the probabilities P that drew the batch. samples_K: sequences drawn.
    gram_KK: Gram matrix of the domain gradients and self_K: unbiased ‖g_i‖², NaN where the batch does not
    give it; both None unless the mixer asked for the Gram matrix. excess_K: mean over the domain's tokens of max(ℓ - ℓ_ref, 0)
    in nats, NaN where absent; None unless the mixer asked for a reference. next_observation: the state that the step led to.
    """

    observation: Observation
    weights_K: Array
    samples_K: Array
    gram_KK: Array | None
    self_K: Array | None
    excess_K: Array | None
    next_observation: Observation


@dataclass(frozen=True)
class Report:
    """What a mixer made of a step, for the record. reward_K and every metric may be missing."""

    reward_K: Array | None = None
    critic_loss: float | None = None
    actor_objective: float | None = None
    phase: str = ""


class Mixer(ABC):
    """Decides domain weights. The base has what a mixer without a memory needs.

    name: as recorded. needs_gram: whether `observe` wants the Gram matrix; without it, no per-domain gradient is
    computed. needs_reference: whether it wants the excess loss over a reference model. depths: relative depths (0 first block,
    1 last) at which to read weight norms.
    """

    name: str
    needs_gram: bool = False
    needs_reference: bool = False
    depths: tuple[float, ...] = ()

    @abstractmethod
    def weights(self, observation: Observation) -> Array:
        """Weights on the simplex for the coming step. [K]"""

    def learn(self) -> None:  # noqa: B027 - most mixers have nothing to do here
        """Improve from past feedback. Called once per step, after its weights were asked for, while the device works."""

    def observe(self, feedback: Feedback) -> Report:
        return Report()

    def settings(self) -> dict[str, Any]:
        """What a reader of the schedule needs to know of this mixer; JSON."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


def ascend(weights_K: Array, exponents_K: Array) -> Array:
    """An exponentiated-gradient step: w_i exp(e_i) / Σ_j w_j exp(e_j). [K]"""
    stepped_K = weights_K * np.exp(exponents_K - exponents_K.max())
    return stepped_K / stepped_K.sum()


def with_uniform(weights_K: Array, share: float) -> Array:
    """(1 - c) w + c / K: no domain starves. [K]"""
    return (1 - share) * weights_K + share / len(weights_K)
