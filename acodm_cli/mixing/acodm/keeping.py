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
# How much a price rises at once, and per look, for every budget that a loss is above its budget.
_PROPORTIONAL, _INTEGRAL = 1.0, 0.2
_MOST = 10.0
# The share of the budget that is allowed at the end.
_AT_LAST = 0.75


class Keeping:
    """Prices λ of min J subject to L_j ≤ (1 + b) L_j(0): what is ascended is the gain for J + Σ_j λ_j L_j.

    λ_j is a Lagrange multiplier with a proportional and an integral part (Stooke et al., 2007.03964):
    e_j = (L_j / L_j(0) - 1) / b' - 1, I_j ← [I_j + k_I e_j]_0^10, λ_j = [I_j + k_P e_j]_0^10 / n. It is 0 as long as the budget holds.
    n is the number of domains or targets that J is the mean of, so that a part that is at twice its budget counts as much as one of
    these, at once. The rise L_j / L_j(0) - 1 is of the same sequences before training and now, so that it is not of their difficulty.
    Losses rise when the learning rate is warmed up again, whatever is trained on, and come back when it decays (Gupta et al.,
    2308.04014). So b' = (¾ + min(η / η_max, 1 - t)) b, for the learning rate η, the largest so far, and the progress t of the run: more
    than the budget at first, less at last, since what a price does takes some steps.

    budget: b. learned: n.
    """

    def __init__(self, number: int, budget: float, learned: int) -> None:
        self.budget, self.learned = budget, learned
        self.rises = MovingAverage((number,), _EMA)
        self.integral_J: Array = np.zeros(number)
        self.largest, self.allowed = 0.0, budget

    @property
    def prices_J(self) -> Array:
        """λ. [J]"""
        return self._bounded(self.integral_J + _PROPORTIONAL * self._errors()) / self.learned

    def _errors(self) -> Array:
        return np.where(self.rises.seen, self.rises.value / self.allowed, 0.0) - 1

    @staticmethod
    def _bounded(prices_J: Array) -> Array:
        return prices_J.clip(0, _MOST)

    def update(self, losses_J: Array, before_J: Array, learning_rate: float, progress: float) -> None:
        """Takes a look. losses_J: in nats, NaN of what was not looked at. before_J: those of the same sequences before training.
        learning_rate: η of the step. progress: t."""
        self.largest = max(self.largest, learning_rate)
        self.allowed = self.budget * (_AT_LAST + min(learning_rate / max(self.largest, 1e-30), 1 - progress))
        looked_J = np.isfinite(losses_J) & (before_J > 0)
        self.rises.update(np.divide(losses_J, before_J, out=np.full_like(losses_J, np.nan), where=looked_J) - 1)
        self.integral_J = np.where(
            looked_J, self._bounded(self.integral_J + _INTEGRAL * self._errors()), self.integral_J
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the prices."""
        rates = {"largest": self.largest, "allowed": self.allowed}
        return {"rises": self.rises.state_dict(), "integral_J": torch.from_numpy(self.integral_J)} | rates

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.rises.load_state_dict(state["rises"])
        self.integral_J = state["integral_J"].numpy()
        self.largest, self.allowed = state["largest"], state["allowed"]
