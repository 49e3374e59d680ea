"""The prices of what a trained model must not forget.

Shape letters: J parts that are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array

# The share that the average of a rise keeps per look. A look has a sequence or two of a part, against the same ones before training.
_EMA = 0.8
# How much a price rises at once, and per look, for every budget that a rise is above the aim.
_PROPORTIONAL, _INTEGRAL = 1.0, 0.2
# The aim is this share of the budget, so that noise and delay stay within the rest.
_AIM = 0.5
_MOST = 10.0


class Keeping:
    """Prices λ of min J subject to L_j ≤ (1 + b) L_j(0): what is ascended is the gain for J + Σ_j λ_j L_j.

    λ_j is a Lagrange multiplier with a proportional and an integral part (Stooke et al., 2007.03964):
    e_j = (L_j / L_j(0) - 1) / b - ½, I_j ← [I_j + k_I e_j]_0^10, λ_j = [I_j + k_P e_j]_0^10. It is 0 as long as little is forgotten,
    and at λ_j = 1 part j counts as much as J. The rise L_j / L_j(0) - 1 is of the same sequences before training and now, so that
    it is not of their difficulty.

    budget: b.
    """

    def __init__(self, number: int, budget: float) -> None:
        self.budget = budget
        self.rises = MovingAverage((number,), _EMA)
        self.integral_J: Array = np.zeros(number)

    @property
    def prices_J(self) -> Array:
        """λ. [J]"""
        return self._bounded(self.integral_J + _PROPORTIONAL * self._errors())

    def _errors(self) -> Array:
        return np.where(self.rises.seen, self.rises.value / self.budget - _AIM, -_AIM)

    @staticmethod
    def _bounded(prices_J: Array) -> Array:
        return prices_J.clip(0, _MOST)

    def update(self, losses_J: Array, before_J: Array) -> None:
        """Takes a look. losses_J: in nats, NaN of what was not looked at. before_J: those of the same sequences before training."""
        self.rises.update(losses_J / before_J - 1)
        looked_J = np.isfinite(losses_J)
        self.integral_J = np.where(
            looked_J, self._bounded(self.integral_J + _INTEGRAL * self._errors()), self.integral_J
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the prices."""
        return {"rises": self.rises.state_dict(), "integral_J": torch.from_numpy(self.integral_J)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.rises.load_state_dict(state["rises"])
        self.integral_J = state["integral_J"].numpy()
