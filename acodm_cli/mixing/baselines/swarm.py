"""A swarm of static mixtures and a regression on what they reached, as in RegMix (Liu et al., 2407.01492) and Olmix: an episode
per mixture.

Shape letters: K domains, N mixtures with known costs, M candidates, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.errors import UsageError
from acodm_cli.mixing.mixer import Array, Mixer, Observation, Task, with_uniform
from acodm_cli.mixing.options import with_options
from acodm_cli.settings import setting

LEAST_EPISODES = 4
# What is added to weights before their logarithm: other domains teach some of a domain, so its loss is bounded where its weight is 0.
_OFFSET = 0.01
# How much less coefficients are penalised that are in proportion to the mean mixture.
_FREE = 10.0


@dataclass(frozen=True)
class SwarmSettings:
    """The settings of `SwarmMixer`."""

    uniform_share: float = setting(0.5, least=0, most=1)
    """The share of the uniform distribution in the mean of the random mixtures. The rest is the prior."""

    concentration: float = setting(5.0, least=0.01, most=1e6)
    """The sum of the parameters of the Dirichlet distribution of the random mixtures. The smaller it is, the farther they spread:
    the largest of 13 weights is above 0.34 in every second mixture by default."""

    ridge: float = setting(1.0, least=1e-6, most=1e6)
    """The weight of the penalty of the regression."""

    candidates: int = setting(20_000, least=1, most=10**6)
    """The number of mixtures of which the regression takes the best."""

    best: int = setting(128, least=1, most=10**6)
    """The number of the best candidates, whose mean is the mixture of the last episode."""


def predicted(mixtures_NK: Array, costs_N: Array, candidates_MK: Array, mean_K: Array, ridge: float) -> Array:
    """Returns the costs of candidates, up to scale and shift, by ridge regression on log weights. [M]

    Of -Σ_i a_i log w_i the best mixture is w ∝ a, which is no corner. Coefficients a in proportion to the mean mixture are hardly
    penalised: where there are fewer mixtures than domains, what is found is near the mean, not near w = 0. mixtures_NK: with
    known costs_N, N ≥ 2."""
    logs_NK = np.log(mixtures_NK + _OFFSET)
    centred_NK = logs_NK - logs_NK.mean(axis=0)
    direction_K1 = mean_K[:, None] / np.linalg.norm(mean_K)
    bases_KF = np.hstack([np.eye(len(mean_K)), _FREE**0.5 * direction_K1])
    features_NF = centred_NK @ bases_KF / max(centred_NK.std(axis=0).mean(), 1e-12)
    known_N = (costs_N - costs_N.mean()) / max(costs_N.std(), 1e-12)
    dual_N = np.linalg.solve(features_NF @ features_NF.T + ridge * np.eye(len(known_N)), known_N)
    predicted_M: Array = np.log(candidates_MK + _OFFSET) @ (bases_KF @ (features_NF.T @ dual_N))
    return predicted_M


class SwarmMixer(Mixer):
    """Executes one mixture per episode: the prior, then random ones, and at last what a regression on their costs finds.

    mixtures: those of the episodes so far. costs: of those that are finished."""

    name = "swarm"
    Settings = SwarmSettings
    uses = ("prior", "objective_weights", "episodes")

    def __init__(self, prior_K: Array, settings: SwarmSettings, seed: int) -> None:
        self.own = settings
        self.seed = seed
        self.mean_K = with_uniform(prior_K, settings.uniform_share)
        self.mixtures: list[Array] = [prior_K]
        self.costs: list[float] = []

    @classmethod
    def make(cls, task: Task) -> Mixer:
        if task.episodes < LEAST_EPISODES:
            raise UsageError(
                f"mixer swarm trains with a mixture per episode, and needs some to learn from; give --episodes {LEAST_EPISODES} or more, "
                f"better twice the number of domains ({2 * len(task.domains)})"
            )
        return cls(task.prior_K, with_options(cls.Settings(), task.options, cls.name), task.seed)

    def weights(self, observation: Observation) -> Array:
        return self.mixtures[-1]

    def end_episode(self, cost: float, left: int) -> None:
        self.costs.append(cost)
        generator = np.random.default_rng((self.seed, len(self.costs)))
        self.mixtures.append(self._drawn(generator, 1)[0] if left > 1 else self._found(generator))

    def _drawn(self, generator: np.random.Generator, count: int) -> Array:
        """Returns random mixtures. [count, K]"""
        return generator.dirichlet(self.own.concentration * self.mean_K, count)

    def _found(self, generator: np.random.Generator) -> Array:
        """Returns the mean of the best candidates by the regression. [K]"""
        costs_N = np.array(self.costs)
        finite_N = np.isfinite(costs_N)
        if finite_N.sum() < 2:
            return self.mean_K
        candidates_MK = self._drawn(generator, self.own.candidates)
        mixtures_NK = np.stack(self.mixtures)[finite_N]
        predicted_M = predicted(mixtures_NK, costs_N[finite_N], candidates_MK, self.mean_K, self.own.ridge)
        best_K: Array = candidates_MK[np.argsort(predicted_M, kind="stable")[: self.own.best]].mean(axis=0)
        return best_K

    def state_dict(self) -> dict[str, Any]:
        return {"mixtures": torch.from_numpy(np.stack(self.mixtures)), "costs": list(self.costs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mixtures, self.costs = list(state["mixtures"].numpy()), list(state["costs"])
