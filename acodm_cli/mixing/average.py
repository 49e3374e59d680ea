"""A moving average of values that are not observed at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acodm_cli.mixing.mixer import Array


class MovingAverage:
    """The elementwise moving average v ← ξ v + (1-ξ) x where x was observed; elsewhere v keeps its value. The first
    observation of an element becomes its average, so that it is not averaged with an arbitrary zero.

    ema: ξ. value: v. seen: which elements were ever observed.
    """

    def __init__(self, shape: tuple[int, ...], ema: float) -> None:
        assert 0 <= ema < 1
        self.ema = ema
        self.value: Array = np.zeros(shape)
        self.seen: NDArray[np.bool_] = np.zeros(shape, dtype=bool)

    def update(self, observed: Array) -> None:
        """Takes one observation into the average. observed: x, NaN where there is no observation."""
        averaged = np.where(self.seen, self.ema * self.value + (1 - self.ema) * observed, observed)
        present = ~np.isnan(observed)
        self.value = np.where(present, averaged, self.value)
        self.seen = self.seen | present

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages and which elements were seen, as tensors."""
        return {"value": torch.from_numpy(self.value), "seen": torch.from_numpy(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.value, self.seen = state["value"].numpy(), state["seen"].numpy()
