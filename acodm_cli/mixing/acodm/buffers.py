"""What an agent remembers of a run, and the noise with which it explores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """N transitions. actions_NK: the executed weights. No transition is terminal, because the end of a run is the end
    of the budget, not of the environment."""

    states_NF: Tensor
    actions_NK: Tensor
    rewards_NK: Tensor
    next_states_NF: Tensor


class ReplayBuffer:
    """A ring buffer of the last `capacity` transitions. It keeps states raw; the agent normalises what it samples."""

    def __init__(self, capacity: int, state_size: int, num_domains: int) -> None:
        widths = (state_size, num_domains, num_domains, state_size)
        self.columns = [torch.zeros(capacity, width, dtype=torch.float64) for width in widths]
        self.capacity = capacity
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, *transition: Tensor) -> None:
        """Adds one transition, given as state_F, action_K, reward_K, next_state_F."""
        for column, value in zip(self.columns, transition, strict=True):
            column[self.added % self.capacity] = value
        self.added += 1

    def sample(self, count: int, generator: torch.Generator) -> Transitions:
        """Returns so many transitions, drawn with replacement."""
        rows = torch.randint(len(self), (count,), generator=generator)
        states, actions, rewards, next_states = (column[rows] for column in self.columns)
        return Transitions(states, actions.float(), rewards.float(), next_states)

    def state_dict(self) -> dict[str, Any]:
        """Returns the transitions, and how many were ever added."""
        return {"added": self.added, "columns": [column[: len(self)].clone() for column in self.columns]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.added = state["added"]
        for column, saved in zip(self.columns, state["columns"], strict=True):
            column[: len(self)] = saved


class Trajectory:
    """The states of the whole run with the logit offsets that were executed in them, thinned to at most `capacity`.
    When it is full, every other pair is dropped, and from then on half as many are kept."""

    def __init__(self, capacity: int, state_size: int, num_domains: int) -> None:
        assert capacity % 2 == 0
        self.states_NF = torch.zeros(capacity, state_size, dtype=torch.float64)
        self.offsets_NK = torch.zeros(capacity, num_domains)
        self.count, self.stride, self.seen = 0, 1, 0

    def add(self, state_F: Tensor, offsets_K: Tensor) -> None:
        """Keeps the offsets that were executed in a state, if the step is not one that is thinned out."""
        if self.count == len(self.states_NF):
            self.count //= 2
            self.stride *= 2
            for column in (self.states_NF, self.offsets_NK):
                column[: self.count] = column[::2].clone()
        if self.seen % self.stride == 0:
            self.states_NF[self.count], self.offsets_NK[self.count] = state_F, offsets_K
            self.count += 1
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns what is kept, and where the thinning stands."""
        rows = {"states": self.states_NF[: self.count].clone(), "offsets": self.offsets_NK[: self.count].clone()}
        return rows | {"count": self.count, "stride": self.stride, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.count, self.stride, self.seen = state["count"], state["stride"], state["seen"]
        self.states_NF[: self.count], self.offsets_NK[: self.count] = state["states"], state["offsets"]


class Exploration:
    """Gaussian noise of unit variance that is correlated between consecutive steps. Its mean over domains is removed,
    because what is common to all logits does nothing under softmax."""

    def __init__(self, num_domains: int, correlation: float) -> None:
        self.correlation = correlation
        self.value_K = torch.zeros(num_domains)
        self.started = False

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Returns the noise of the next step. [K]"""
        fresh_K = torch.randn(len(self.value_K), generator=generator)
        fresh_K = fresh_K - fresh_K.mean()
        if self.started:
            rho = self.correlation
            self.value_K = rho * self.value_K + (1 - rho**2) ** 0.5 * fresh_K
        else:
            self.value_K, self.started = fresh_K, True
        return self.value_K

    def state_dict(self) -> dict[str, Any]:
        """Returns the last noise, with which the next is correlated."""
        return {"value": self.value_K, "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.value_K, self.started = state["value"], state["started"]
