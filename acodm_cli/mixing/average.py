"""A moving average of what is not observed at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acodm_cli.mixing.mixer import Array


class MovingAverage:
    """v ← ξ v + (1-ξ) x where x was observed, else v holds; elementwise. A first observation starts its average, instead of
    averaging with an arbitrary zero."""

    def __init__(self, shape: tuple[int, ...], ema: float) -> None:
        assert 0 <= ema < 1
        self.ema = ema
        self.value: Array = np.zeros(shape)
        self.seen: NDArray[np.bool_] = np.zeros(shape, dtype=bool)

    def update(self, observed: Array) -> None:
        """observed: NaN where there is no observation."""
        averaged = np.where(self.seen, self.ema * self.value + (1 - self.ema) * observed, observed)
        present = ~np.isnan(observed)
        self.value = np.where(present, averaged, self.value)
        self.seen = self.seen | present

    def state_dict(self) -> dict[str, Any]:
        return {"value": torch.from_numpy(self.value), "seen": torch.from_numpy(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.seen = state["value"].numpy(), state["seen"].numpy()
