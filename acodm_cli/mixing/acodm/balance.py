"""The weights of several targets, which may turn to those that improve least."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.mixer import Array, ascend
from acodm_cli.mixing.objective import Objective

# How strongly `robust` turns: a target that is behind the mean by so much of its first loss counts e times as much.
_BEHIND = 0.05
# The share that it moves per look, and the share that every target keeps.
_CALM, _FLOOR = 0.1, 0.1


class Balance:
    """The weights of targets over a run. As in GRAPE (2505.20380), those that improved least get more, by an exponentiated
    gradient on their relative improvement; here it is calmed and has a floor, as the domain weights do.

    weights_J: the weights now, which sum to 1."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        number = len(objective.targets)
        self.prior_J: Array = objective.shares(number)
        self.weights_J = self.prior_J
        self.first_J = np.full(number, np.nan)
        self.turned_J = np.zeros(number)

    def update(self, losses_J: Array) -> None:
        """Takes a look at the targets' losses. losses_J: in nats, smoothed; NaN where unknown."""
        self.first_J = np.where(np.isnan(self.first_J), losses_J, self.first_J)
        if self.objective.balance == "sum":
            return
        improved_J = np.nan_to_num(1 - losses_J / self.first_J)
        behind_J = improved_J.mean() - improved_J
        self.turned_J = (1 - _CALM) * self.turned_J + _CALM * behind_J / _BEHIND
        self.weights_J = (1 - _FLOOR) * ascend(self.prior_J, self.turned_J) + _FLOOR * self.prior_J

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the weights."""
        return {name: torch.from_numpy(np.array(getattr(self, name))) for name in ("weights_J", "first_J", "turned_J")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value.numpy())
