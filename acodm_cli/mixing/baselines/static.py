"""Weights that stay the same over a run: natural, uniform, or by temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from acodm_cli.mixing.mixer import Array, Mixer, Observation, Task
from acodm_cli.mixing.options import with_options
from acodm_cli.settings import setting


class StaticMixer(Mixer):
    """Executes the same weights at every step. weights_K: these weights, on the simplex."""

    name = "static"
    open_loop = True

    def __init__(self, weights_K: Array) -> None:
        self.weights_K = weights_K

    def weights(self, observation: Observation) -> Array:
        return self.weights_K

    def planned_weights(self) -> Array:
        return self.weights_K[None, :]

    def settings(self) -> dict[str, Any]:
        return {"weights": self.weights_K.tolist()}


class NaturalMixer(StaticMixer):
    """Executes weights in proportion to the domains' token counts."""

    name = "natural"

    @classmethod
    def make(cls, task: Task) -> Mixer:
        with_options(cls.Settings(), task.options, cls.name)
        return cls(natural_weights(task.tokens_K))


class UniformMixer(StaticMixer):
    """Executes the same weight for every domain."""

    name = "uniform"

    @classmethod
    def make(cls, task: Task) -> Mixer:
        with_options(cls.Settings(), task.options, cls.name)
        return cls(uniform_weights(len(task.domains)))


@dataclass(frozen=True)
class TemperatureSettings:
    """The settings of `TemperatureMixer`."""

    temperature: float = setting(2.0, above=0)
    """T. 1 gives natural weights, a large T gives uniform ones."""


class TemperatureMixer(StaticMixer):
    """Executes the weights that `temperature_weights` returns."""

    name = "temperature"
    Settings = TemperatureSettings

    @classmethod
    def make(cls, task: Task) -> Mixer:
        own = with_options(cls.Settings(), task.options, cls.name)
        return cls(temperature_weights(task.tokens_K, own.temperature))


def uniform_weights(num_domains: int) -> Array:
    """Returns the weight 1/K for each of K domains. [K]"""
    return np.full(num_domains, 1.0 / num_domains)


def natural_weights(tokens_K: Array) -> Array:
    """Returns weights in proportion to the domains' token counts. [K]"""
    return tokens_K / tokens_K.sum()


def temperature_weights(tokens_K: Array, temperature: float) -> Array:
    """Returns w_i ∝ n_i^(1/T), as in multilingual pretraining (1910.10683, section 3.5). [K]

    n_i: the token count of domain i. T = 1 gives natural weights, T → ∞ uniform ones.
    """
    powers_K = (tokens_K / tokens_K.max()) ** (1 / temperature)
    return powers_K / powers_K.sum()
