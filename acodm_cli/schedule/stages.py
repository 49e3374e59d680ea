"""The piecewise-constant stages closest to a schedule, for trainers that cannot change their mixture every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.schedule.measures import entropy
from acodm_cli.schedule.timeline import integral

Array = NDArray[np.float64]

# The most places of the run at which stages may begin. The cost of the search grows with the square of it.
MOST_PLACES = 512
# One more stage is worth it if it gains so many nats per step; a smaller gain is rounding.
LEAST_GAIN = 1e-7


@dataclass(frozen=True)
class Stage:
    """Constant weights: weights_K hold for `steps` optimiser steps, beginning with step `first`, counted from 0."""

    first: int
    steps: int
    weights_K: Array


def find_stages(weights_SK: Array, steps: int, count: int, multiple: int = 1) -> list[Stage]:
    """Returns stages q that minimise Σ_t KL(w_t ‖ q_t), the nats per sequence by which they misstate the schedule w.

    weights_SK: on the simplex, stretched over the `steps` steps of the target's run. count: the most stages; there are
    fewer if the run has fewer places to begin one. multiple: every stage begins at a multiple of so many steps.

    The best constant weights of a span are the mean of its weights; their divergence is the entropy of that mean less
    the mean of the entropies. Dynamic programming over at most MOST_PLACES evenly spaced places finds where spans
    begin.
    """
    assert min(count, steps, multiple) >= 1
    places = -(-steps // multiple)
    edges = np.unique(np.linspace(0, places, min(places, MOST_PLACES) + 1).round().astype(np.int64)) * multiple
    edges[-1] = steps
    # Σ_t w_t up to every edge. The schedule is taken as a step function of the run's progress.
    sums_EK = integral(weights_SK, edges / steps * len(weights_SK)) * (steps / len(weights_SK))
    first = _boundaries(sums_EK, edges, min(count, len(edges) - 1))
    stages = []
    for begin, end in zip(first, [*first[1:], len(edges) - 1], strict=True):
        total_K = sums_EK[end] - sums_EK[begin]
        stages.append(Stage(int(edges[begin]), int(edges[end] - edges[begin]), total_K / total_K.sum()))
    return stages


def mean_divergence(weights_SK: NDArray[Any], stages: list[Stage], shares_NK: Array) -> float:
    """Returns KL(w ‖ shares) per step, in nats, if the stages draw these shares; infinite if a share is 0 where the
    schedule's is not."""
    steps = stages[-1].first + stages[-1].steps
    edges_E = np.array([*(stage.first for stage in stages), steps], dtype=np.float64)
    places_E = edges_E / steps * len(weights_SK)
    # All sums are in shares of the run. KL is the cross-entropy less the entropy of the weights themselves.
    asked_NK = np.diff(integral(weights_SK, places_E), axis=0) / len(weights_SK)
    with np.errstate(divide="ignore"):
        logs_NK = np.log(np.where(asked_NK > 0, shares_NK, 1.0))
    crossed = -np.where(asked_NK > 0, asked_NK * logs_NK, 0.0).sum()
    return max(float(crossed - entropy(weights_SK.astype(np.float64)).mean()), 0.0)


def _boundaries(sums_EK: Array, edges: NDArray[np.int64], count: int) -> list[int]:
    """Returns the indices of the edges where the best `count` spans begin, or fewer where more would not be better."""
    num_edges = len(edges)
    cost_EE = np.full((num_edges, num_edges), np.inf)
    for end in range(1, num_edges):
        length_E = (edges[end] - edges[:end]).astype(np.float64)
        mean_EK = (sums_EK[end] - sums_EK[:end]) / length_E[:, None]
        # The entropies of the single steps are left out: they are the same in any partition.
        cost_EE[:end, end] = length_E * entropy(mean_EK)
    best_E = cost_EE[0]
    choices, costs = [], [best_E[-1]]
    for _ in range(count - 1):
        through_EE = best_E[:, None] + cost_EE
        choices.append(through_EE.argmin(axis=0))
        best_E = through_EE.min(axis=0)
        costs.append(best_E[-1])
    enough = next(index for index, cost in enumerate(costs) if cost <= min(costs) + LEAST_GAIN * edges[-1])
    first, end = [], num_edges - 1
    for choice in reversed(choices[:enough]):
        end = int(choice[end])
        first.append(end)
    return [0, *reversed(first)]
