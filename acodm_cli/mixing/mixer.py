"""The one interface between the training loop and everything that decides domain weights.

The loop calls `weights(observation)` before a step, draws the batch with these weights, and reports what happened with
`observe(feedback)`. Static weights, replay, a frozen policy, every baseline and the AC-ODM learner are mixers.

Shape letters: K domains, L depths at which weight norms are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acodm_cli.mixing.objective import Objective
from acodm_cli.mixing.options import NoSettings, with_options
from acodm_cli.schedule.schedule import Schedule

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """What the trainer knows before it draws the batch of `step`.

    step: the index of the coming step, from 0. total_steps, total_tokens: the budget of the run. tokens: the number of
    tokens predicted so far. learning_rate: the one of the coming step. samples_K: the number of sequences that the last
    batch held of each domain. losses_K: the last known mean loss of each domain in nats; a domain that was not in the
    last batch keeps its value. previous_losses_K: the same, one step earlier. max_loss: ln(vocabulary size), the loss
    of a uniform prediction; losses divided by it are scale-free. weight_norms_L, initial_norms_L: the L2 norms of the
    selected weights now and at the start of the run. update_norms_L: the L2 norms of their last update.
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
        """The share of the run's steps that are done, from 0 to 1."""
        return self.step / self.total_steps


@dataclass(frozen=True)
class Feedback:
    """What happened in one step.

    observation: what the trainer knew before the step. weights_K: the executed weights, that is, the probabilities P
    with which the batch was drawn. samples_K: the number of sequences drawn from each domain. gram_KK: the Gram matrix
    of the domain gradients, with zero rows and columns for absent domains. self_K: the unbiased ‖g_i‖², NaN where the
    batch does not give it. Both are None unless the mixer asked for the Gram matrix. excess_K: the mean over each
    domain's tokens of max(ℓ - ℓ_ref, 0) in nats, NaN for absent domains; None unless the mixer asked for a reference
    model. guide_KJ: H_ij = ⟨g_i, g_j⟩ with the gradients of the targets' guide text, NaN where domain or target was not looked
    at. guide_losses_J: the mean loss of each target's guide text in nats, NaN likewise. guide_before_J: what the losses of the same
    sequences were before training, NaN where they were not measured. All three are None in steps without a guide pass.
    next_observation: what the trainer knows after the step.
    """

    observation: Observation
    weights_K: Array
    samples_K: Array
    gram_KK: Array | None
    self_K: Array | None
    excess_K: Array | None
    next_observation: Observation
    guide_KJ: Array | None = None
    guide_losses_J: Array | None = None
    guide_before_J: Array | None = None


@dataclass(frozen=True)
class Report:
    """What a mixer made of a step, for the record.

    reward_K: the quantity by which the mixer decides, None if there is none. metrics: other numbers that get a column
    in the schedule, by the name of the column: one number per step, or an array with one per domain ([K]). phase: a
    word for the progress display.
    """

    reward_K: Array | None = None
    metrics: Mapping[str, float | Array] = field(default_factory=dict)
    phase: str = ""


@dataclass(frozen=True)
class Task:
    """What a mixer is made for.

    domains: the names of the K domains, in order. tokens_K: the training tokens of each domain, upsampling included.
    prior_K: the weights to start from, on the simplex. seed: the seed of the run. options: some of the mixer's own
    settings, as texts by name. preset: the name of the preset of the agent's settings. schedule: the schedule that
    `apply` trains with, its domains in the order of the run; None if there is none. objective: what the run is for.
    episodes: how often the model starts anew while the mixer goes on.
    importance: computes the weights of `--prior importance`; None without targets.
    """

    domains: list[str]
    tokens_K: Array
    prior_K: Array
    seed: int = 0
    options: dict[str, str] | None = None
    preset: str = "default"
    schedule: Schedule | None = None
    objective: Objective = field(default_factory=Objective)
    episodes: int = 1
    importance: Callable[[], Array] | None = None


class Mixer(ABC):
    """Decides domain weights, and declares what a run must know about it. These methods suit a mixer without a memory.

    name: the mixer's name in the record. Settings: the dataclass of the mixer's own settings, each with a default. own:
    this mixer's settings. needs_gram: whether `observe` needs the Gram matrix; otherwise no per-domain gradient is
    computed. guided: whether `observe` needs the gradients of targets' guide text, where there are targets.
    keeps: whether it heeds what must not be forgotten. open_loop: whether weights depend on the number of the step and of tokens only, so that
    the trainer may ask for those of the next step before it knows what this one gives. depths: the relative depths (0 is the first block, 1 the last) at which weight norms are read. reference:
    the folder of the model over which `observe` needs the excess loss, None if it needs no such model. files: the
    options that name a file or folder, whose content must not change before a run is resumed. uses: the settings of
    the run, besides the mixer's own, that change what it does; the run refuses others that would do nothing.
    """

    name: str
    Settings: ClassVar[type] = NoSettings
    own: Any = NoSettings()
    needs_gram: bool = False
    guided: bool = False
    keeps: bool = False
    open_loop: bool = False
    depths: tuple[float, ...] = ()
    reference: str | None = None
    files: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def make(cls, task: Task) -> Mixer:
        """Returns a mixer for the task: `cls(prior_K, settings)`, unless a subclass makes it in another way.

        Raises:
            UsageError: the mixer does not have one of the options, or it refuses a value.
            ScheduleError: a schedule cannot be read, or it has other domains.
        """
        own = with_options(cls.default_settings(task.preset), task.options, cls.name)
        return cls(task.prior_K, own)  # type: ignore[call-arg]

    @classmethod
    def default_settings(cls, preset: str) -> Any:
        """Returns the mixer's own settings before options change them. preset: the name of the preset of the agent's
        settings, for mixers that have an agent."""
        return cls.Settings()

    @abstractmethod
    def weights(self, observation: Observation) -> Array:
        """Returns the weights of the coming step, on the simplex. [K]"""

    def learn(self) -> None:  # noqa: B027 - most mixers have nothing to do here
        """Improves from past feedback. The trainer calls it once per step, after `weights`, while the device works."""

    def observe(self, feedback: Feedback) -> Report:
        """Takes note of what happened in a step, and returns what to record of it."""
        return Report()

    def cost(self, objective: Objective, losses_J: Array) -> float:
        """Returns what the mixer wants to be small at the end of an episode, by which the best one is chosen, in nats.
        objective: what the run is for. losses_J: those of the targets, or of all domains."""
        return objective.value(losses_J)

    def end_episode(self, cost: float, left: int) -> None:  # noqa: B027 - most mixers do not learn from one to the next
        """Takes note that an episode has ended, and that the model starts anew. cost: the episode's. left: how many episodes
        follow, at least one."""

    def settings(self) -> dict[str, Any]:
        """Returns what a reader of the schedule needs to know about this mixer, as JSON values: its own settings, but for
        those that name files of this machine."""
        return {name: value for name, value in vars(self.own).items() if name not in self.files}

    def planned_weights(self) -> Array | None:
        """Returns the weights at S evenly spaced moments of a run, None if they are not known in advance. [S, K]"""
        return None

    def policy_bytes(self, domains: list[str]) -> bytes | None:
        """Returns what the mixer has learned, for the schedule file; None if nothing of it outlasts the run."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the mixer's coming weights depend on, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        assert not state


def ascend(weights_K: Array, exponents_K: Array) -> Array:
    """Returns the weights after an exponentiated-gradient step: w_i exp(e_i) / Σ_j w_j exp(e_j). [K]"""
    stepped_K = weights_K * np.exp(exponents_K - exponents_K.max())
    return stepped_K / stepped_K.sum()


def with_uniform(weights_K: Array, share: float) -> Array:
    """Returns (1 - c) w + c / K, with c the share, so that no domain starves. [K]"""
    return (1 - share) * weights_K + share / len(weights_K)
