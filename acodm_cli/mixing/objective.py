"""What a run is for: J(θ) = Σ_j c_j L_j(θ), a weighted sum of held-out losses.

Without targets, L_j is the loss of domain j, all alike or weighted. With targets, L_j is the loss of target j, and c_j its weight, which
`robust` turns to the targets that improve least.

Shape letters: K domains, J targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

# How strongly `robust` turns: a target that is behind the mean by so much of its first loss counts e times as much.
_BEHIND = 0.05
# The share that it moves per look, and the share that every target keeps.
_CALM, _FLOOR = 0.1, 0.1


@dataclass(frozen=True)
class Objective:
    """The objective of a run. targets: the names of its J targets, none for the mean over domains. weights_J: c, not
    normalised, of the targets, or else of the domains; empty if all count alike. balance: `sum` for these weights as they are;
    `robust` lets them turn."""

    targets: tuple[str, ...] = ()
    weights_J: tuple[float, ...] = ()
    balance: Literal["sum", "robust"] = "sum"

    def value(self, losses_J: Array) -> float:
        """Returns J, with weights that sum to 1, in nats. losses_J: those of the targets, or of all domains."""
        return float(losses_J @ self.shares(len(losses_J)))

    def shares(self, number: int) -> Array:
        """Returns c, so that it sums to 1. number: J, or K without targets. [J]"""
        weights = np.array(self.weights_J) if self.weights_J else np.ones(number)
        return weights / weights.sum()


MEAN_OVER_DOMAINS = Objective()


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
        turned_J = self.prior_J * np.exp(self.turned_J - self.turned_J.max())
        self.weights_J = (1 - _FLOOR) * turned_J / turned_J.sum() + _FLOOR * self.prior_J

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the weights."""
        return {name: torch.from_numpy(np.array(getattr(self, name))) for name in ("weights_J", "first_J", "turned_J")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value.numpy())
