from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.mixing.baselines.swarm import SwarmMixer, SwarmSettings
from acodm_cli.mixing.mixer import Array, Task
from tests.mixing.feedback import observation

World = Callable[[Array], float]


def near(best_K: Array) -> World:
    return lambda weights_K: float(((weights_K - best_K) ** 2).sum())


def likely(best_K: Array) -> World:
    return lambda weights_K: float(-best_K @ np.log(weights_K + 0.003))


def learned_power_laws(best_K: Array) -> World:
    """A domain's loss falls with what it and, less, others are given."""
    return lambda weights_K: float(best_K @ (0.9 * weights_K + 0.1 / len(best_K)) ** -0.3)


def costs_of(world: World, num_domains: int, episodes: int, seed: int) -> list[float]:
    """What a swarm reaches in a world, by episode."""
    mixer = SwarmMixer(np.full(num_domains, 1 / num_domains), SwarmSettings(), seed)
    costs = [world(mixer.weights(observation()))]
    for left in range(episodes - 1, 0, -1):
        mixer.end_episode(costs[-1], left)
        costs.append(world(mixer.weights(observation())))
    return costs


@pytest.mark.parametrize(
    ("world", "num_domains", "episodes", "least"),
    [
        (near, 4, 12, 14),  # no cost of this kind is what the regression is made for
        (near, 13, 32, 16),
        (likely, 4, 12, 20),
        (likely, 13, 32, 20),
        (learned_power_laws, 4, 12, 18),
        (learned_power_laws, 13, 32, 20),
        (likely, 13, 8, 16),  # fewer mixtures than domains
    ],
)
def test_the_last_mixture_is_better_than_all_that_it_is_learned_from(
    world: Callable[[Array], World], num_domains: int, episodes: int, least: int
) -> None:
    """Mostly: in so many of 20 cases."""
    better = 0
    for seed in range(20):
        best_K = np.random.default_rng(100 + seed).dirichlet(np.ones(num_domains))
        *tried, last = costs_of(world(best_K), num_domains, episodes, seed)
        assert len(tried) == episodes - 1
        better += last < min(tried)
    assert better >= least


def test_random_mixtures_reach_far() -> None:
    mixer = SwarmMixer(np.full(13, 1 / 13), SwarmSettings(), seed=0)
    assert mixer.weights(observation()) == pytest.approx(np.full(13, 1 / 13))
    largest = []
    for _ in range(50):
        mixer.end_episode(1.0, left=9)
        largest.append(mixer.weights(observation()).max())
    assert np.median(largest) > 0.3
    assert max(largest) > 0.55


def test_an_episode_that_failed_does_not_count() -> None:
    prior_K = np.full(3, 1 / 3)
    found = []
    for last in (np.nan, np.inf):
        mixer = SwarmMixer(prior_K, SwarmSettings(), seed=0)
        for left, cost in zip((4, 3, 2, 1), (1.0, 2.0, 1.5, last), strict=True):
            mixer.end_episode(cost, left)
        found.append(mixer.weights(observation()))
    assert np.isfinite(found[0]).all()
    assert np.array_equal(found[0], found[1])


def test_too_few_episodes_are_refused() -> None:
    task = Task(["a", "b"], np.ones(2), np.full(2, 0.5), episodes=3)
    with pytest.raises(UsageError, match="give --episodes 4 or more, better twice the number of domains"):
        SwarmMixer.make(task)
