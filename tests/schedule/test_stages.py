from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from acodm_cli.schedule.measures import divergence
from acodm_cli.schedule.stages import Stage, find_stages, mean_divergence


def total_divergence(weights_SK: np.ndarray, stages: list[Stage]) -> float:
    return sum(
        float(divergence(weights_SK[stage.first : stage.first + stage.steps], stage.weights_K).sum())
        for stage in stages
    )


def test_stages_are_the_best_of_all_partitions() -> None:
    weights_SK = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    best = np.inf
    for starts in combinations(range(1, 9), 2):
        edges = [0, *starts, 9]
        spans = [weights_SK[a:b] for a, b in pairwise(edges)]
        best = min(best, sum(float(divergence(span, span.mean(axis=0)).sum()) for span in spans))
    stages = find_stages(weights_SK, 9, 3)
    assert len(stages) == 3
    assert total_divergence(weights_SK, stages) == pytest.approx(best)


def test_steps_of_a_schedule_are_found_exactly() -> None:
    parts = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])
    stages = find_stages(np.repeat(parts, [10, 25, 65], axis=0), 1000, 3)
    assert [(stage.first, stage.steps) for stage in stages] == [(0, 100), (100, 250), (350, 650)]
    np.testing.assert_allclose([stage.weights_K for stage in stages], parts)


def test_stages_begin_at_multiples_and_cover_the_run() -> None:
    weights_SK = np.random.default_rng(1).dirichlet(np.ones(4), 50)
    stages = find_stages(weights_SK, 1003, 5, multiple=64)
    assert all(stage.first % 64 == 0 for stage in stages)
    assert stages[-1].first + stages[-1].steps == 1003
    np.testing.assert_allclose([stage.weights_K.sum() for stage in stages], 1)


def test_a_constant_schedule_is_one_stage() -> None:
    weights_K = np.random.default_rng(3).dirichlet(np.ones(22))
    assert len(find_stages(np.tile(weights_K, (600, 1)), 1000, 8)) == 1
    assert len(find_stages(weights_K[None], 1000, 8)) == 1


def test_mean_divergence_is_that_of_every_step() -> None:
    weights_SK = np.random.default_rng(4).dirichlet(np.ones(3), 40)
    stages = find_stages(weights_SK, 40, 4)
    shares_NK = np.stack([stage.weights_K for stage in stages])
    assert mean_divergence(weights_SK, stages, shares_NK) == pytest.approx(total_divergence(weights_SK, stages) / 40)
    halves = np.array([[1.0, 0.0], [0.0, 1.0]])
    two = find_stages(halves, 1000, 2)
    assert mean_divergence(halves, two, halves) == 0
    assert mean_divergence(halves, two, halves[::-1]) == np.inf


def test_no_more_stages_than_places_to_begin() -> None:
    weights_SK = np.array([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    assert len(find_stages(weights_SK, 3, 10)) == 3
    assert len(find_stages(weights_SK, 3, 10, multiple=2)) == 2
    assert len(find_stages(weights_SK, 1, 5)) == 1


def test_a_million_steps_take_no_square_of_them() -> None:
    weights_SK = np.random.default_rng(2).dirichlet(np.ones(2), 1_000_000)
    assert sum(stage.steps for stage in find_stages(weights_SK, 1_000_000, 8)) == 1_000_000
