"""Recorded weights, looked up at any point of another run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Timeline:
    """Weights recorded at S steps. weights_SK: on the simplex. step_S: their optimiser steps, from 1. tokens_S: cumulative predicted
    tokens after each of them. Between recorded points weights are interpolated linearly, which keeps them on the simplex; outside,
    the nearest holds."""

    def __init__(self, weights_SK: NDArray[Any], step_S: NDArray[np.int64], tokens_S: NDArray[np.int64]) -> None:
        assert len(weights_SK) == len(step_S) == len(tokens_S) > 0
        self.weights_SK = weights_SK
        self.step_S = step_S
        # Tokens already consumed when each recorded row's weights were put to use.
        self.tokens_before_S = np.concatenate([[0], tokens_S[:-1]])

    def __len__(self) -> int:
        return len(self.weights_SK)

    def at_step(self, step: float) -> Array:
        """Of the optimiser step, from 1. [K]"""
        return self._at(float(np.interp(step, self.step_S, np.arange(len(self)))))

    def at_tokens(self, tokens: float) -> Array:
        """Of the step that begins when so many tokens have been predicted. [K]"""
        return self._at(float(np.interp(tokens, self.tokens_before_S, np.arange(len(self)))))

    def at_progress(self, progress: float) -> Array:
        """At a share of the run. Steps are intervals of it and their weights those of their middles: step t of T is at
        (t - 1/2) / T, so that a run of as many steps finds exactly the recorded weights. [K]"""
        return self._at(progress * len(self) - 0.5)

    def _at(self, position: float) -> Array:
        position = min(max(position, 0.0), len(self) - 1.0)
        below = int(position)
        above = min(below + 1, len(self) - 1)
        fraction = position - below
        return (1 - fraction) * self.weights_SK[below].astype(np.float64) + fraction * self.weights_SK[above].astype(
            np.float64
        )
