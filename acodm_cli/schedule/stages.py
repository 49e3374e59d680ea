"""Piecewise-constant stages that are closest to a schedule, for trainers that cannot change their mixture every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acodm_cli.schedule.measures import entropy

Array = NDArray[np.float64]

# Stages may begin at this many places of the run at most: the search takes the square of it.
MOST_PLACES = 512


@dataclass(frozen=True)
class Stage:
    """weights_K hold from optimiser step `first` (from 0) for `steps` steps."""

    first: int
    steps: int
    weights_K: Array


def find_stages(weights_SK: Array, steps: int, count: int, multiple: int = 1) -> list[Stage]:
    """The stages that minimise Σ_t KL(w_t ‖ q_t), the nats per sequence by which the stages q misstate the schedule w.

    weights_SK: on the simplex, stretched over `steps` steps of the target's run. count: stages at most; there are fewer if the
    run does not have as many places to begin one. multiple: every stage begins at a multiple of so many steps.

    Of a span the best constant weights are the mean of its weights, whose divergence is the entropy of that mean less the mean of the
    entropies. Where spans begin is found by dynamic programming over at most MOST_PLACES evenly spaced places.
    """
    assert min(count, steps, multiple) >= 1
    places = -(-steps // multiple)
    edges = np.unique(np.linspace(0, places, min(places, MOST_PLACES) + 1).round().astype(np.int64)) * multiple
    edges[-1] = steps
    # Σ_t w_t up to every edge, of the schedule taken as a step function of the run's progress.
    sums_EK = _integral(weights_SK, edges / steps * len(weights_SK)) * (steps / len(weights_SK))
    first = _boundaries(sums_EK, edges, min(count, len(edges) - 1))
    stages = []
    for begin, end in zip(first, [*first[1:], len(edges) - 1], strict=True):
        total_K = sums_EK[end] - sums_EK[begin]
        stages.append(Stage(int(edges[begin]), int(edges[end] - edges[begin]), total_K / total_K.sum()))
    return stages


def _integral(weights_SK: Array, at_E: Array) -> Array:
    """∫ w from 0 to each place, of the step function that has weights_SK[s] from s to s + 1. [E, K]"""
    sums_SK = np.concatenate([np.zeros((1, weights_SK.shape[1])), weights_SK.cumsum(axis=0)])
    whole_E = np.minimum(at_E.astype(np.int64), len(weights_SK) - 1)
    return sums_SK[whole_E] + (at_E - whole_E)[:, None] * weights_SK[whole_E]


def _boundaries(sums_EK: Array, edges: NDArray[np.int64], count: int) -> list[int]:
    """Indices of the edges where the best `count` spans begin."""
    num_edges = len(edges)
    cost_EE = np.full((num_edges, num_edges), np.inf)
    for end in range(1, num_edges):
        length_E = (edges[end] - edges[:end]).astype(np.float64)
        mean_EK = (sums_EK[end] - sums_EK[:end]) / length_E[:, None]
        # The entropies of the single steps are the same in any partition.
        cost_EE[:end, end] = length_E * entropy(mean_EK)
    best_E = cost_EE[0]
    choices = []
    for _ in range(count - 1):
        through_EE = best_E[:, None] + cost_EE
        choices.append(through_EE.argmin(axis=0))
        best_E = through_EE.min(axis=0)
    first, end = [], num_edges - 1
    for choice in reversed(choices):
        end = int(choice[end])
        first.append(end)
    return [0, *reversed(first)]
