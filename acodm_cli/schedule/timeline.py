"""Recorded weights, looked up at any point of another run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Timeline:
    """Weights recorded in S rows, each for one step or for a span of steps.

    weights_SK: on the simplex. step_S: the last optimiser step of each row, from 1. tokens_S: cumulative predicted
    tokens after that step.

    A row's weights are those of the middle of its span. Between two middles they are interpolated linearly, which keeps
    them on the simplex; before the first and after the last middle, the nearest row holds.
    """

    def __init__(self, weights_SK: NDArray[Any], step_S: NDArray[np.int64], tokens_S: NDArray[np.int64]) -> None:
        assert len(weights_SK) == len(step_S) == len(tokens_S) > 0
        self.weights_SK = weights_SK
        before_S, tokens_before_S = rows_begin(step_S), rows_begin(tokens_S)
        self.middle_S = (before_S + 1 + step_S) / 2
        # The tokens that had been predicted when the middle step of each row began.
        share_S = (self.middle_S - 1 - before_S) / np.maximum(step_S - before_S, 1)
        self.tokens_S = tokens_before_S + share_S * (tokens_S - tokens_before_S)
        self.tokens_before = int(tokens_before_S[0])

    def __len__(self) -> int:
        return len(self.weights_SK)

    def at_step(self, step: float) -> Array:
        """Returns the weights of an optimiser step, counted from 1. [K]"""
        return self._at(float(np.interp(step, self.middle_S, np.arange(len(self)))))

    def at_tokens(self, tokens: float) -> Array:
        """Returns the weights of the step that begins when so many tokens have been predicted. [K]"""
        return self._at(float(np.interp(tokens, self.tokens_S, np.arange(len(self)))))

    def at_progress(self, progress: float) -> Array:
        """Returns the weights at a share of the run. Rows are equal parts of it, and their weights hold at their
        middles: step t of T is at (t - 1/2) / T, so a run of as many steps finds exactly the recorded weights. [K]"""
        return self._at(progress * len(self) - 0.5)

    def _at(self, position: float) -> Array:
        position = min(max(position, 0.0), len(self) - 1.0)
        below = int(position)
        above = min(below + 1, len(self) - 1)
        fraction = position - below
        ends_2K = self.weights_SK[[below, above]].astype(np.float64)
        weights_K = (1 - fraction) * ends_2K[0] + fraction * ends_2K[1]
        return weights_K / weights_K.sum()


def rows_begin(last_S: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the end of the row before each. The row before the first ends where it would if the first were as long as
    the second, but not before the run begins."""
    first = max(0, 2 * last_S[0] - last_S[1]) if len(last_S) > 1 else 0
    return np.concatenate([[first], last_S[:-1]])


def integral(values_SX: NDArray[Any], at_E: Array) -> Array:
    """Returns the integral from 0 to each place of the step function with value values_SX[s] from s to s + 1. [E, …]"""
    zero = np.zeros((1, *values_SX.shape[1:]))
    sums_SX = np.concatenate([zero, values_SX.cumsum(axis=0, dtype=np.float64)])
    whole_E = np.minimum(at_E.astype(np.int64), len(values_SX) - 1)
    part_E = (at_E - whole_E).reshape(-1, *[1] * (values_SX.ndim - 1))
    return sums_SX[whole_E] + part_E * values_SX[whole_E]
