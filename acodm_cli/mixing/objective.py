"""What a run is for: J(θ) = Σ_j c_j L_j(θ), a weighted sum of held-out losses.

Without targets, L_j is the loss of domain j, all alike or weighted. With targets, L_j is the loss of target j, and c_j its weight, which
`robust` turns to the targets that improve least. What a trained model must not forget is no part of J, but a constraint:
L_j ≤ (1 + b) L_j(0) of each part that is kept, with L_j(0) its loss before training and b the budget.

Shape letters: K domains, J targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """The objective of a run. targets: the names of its J targets, none for the mean over domains. weights_J: c, not
    normalised, of the targets, or else of the domains; empty if all count alike. balance: `sum` for these weights as they are;
    `robust` lets them turn. kept: the names of what must not be forgotten. budget: b. learned: the number of domains or targets that
    J is the mean of; 0 where nothing is kept."""

    targets: tuple[str, ...] = ()
    weights_J: tuple[float, ...] = ()
    balance: Literal["sum", "robust"] = "sum"
    kept: tuple[str, ...] = ()
    budget: float = 0.0
    learned: int = 0

    def value(self, losses_J: Array) -> float:
        """Returns J, with weights that sum to 1, in nats. losses_J: those of the targets, or of all domains."""
        return float(losses_J @ self.shares(len(losses_J)))

    def counted(self, measured: Array, num_domains: int, targets: Sequence[str]) -> Array:
        """Returns those losses that J is made of. measured: the losses of all domains, then of all targets. targets: the names of
        those, in order. [J]"""
        if not self.targets:
            return measured[:num_domains]
        return measured[[num_domains + targets.index(name) for name in self.targets]]

    def shares(self, number: int) -> Array:
        """Returns c, so that it sums to 1. number: J, or K without targets. [J]"""
        weights = np.array(self.weights_J) if self.weights_J else np.ones(number)
        return weights / weights.sum()


MEAN_OVER_DOMAINS = Objective()
