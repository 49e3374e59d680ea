"""Weights that stay as they are: natural, uniform, by temperature, or given."""

from __future__ import annotations

from typing import Any

import numpy as np

from acodm_cli.mixing.mixer import Array, Mixer, Observation


class StaticMixer(Mixer):
    """The same weights at every step. weights_K: on the simplex."""

    def __init__(self, weights_K: Array, name: str = "static") -> None:
        self.weights_K = weights_K
        self.name = name

    def weights(self, observation: Observation) -> Array:
        return self.weights_K

    def settings(self) -> dict[str, Any]:
        return {"weights": self.weights_K.tolist()}


def uniform_weights(num_domains: int) -> Array:
    return np.full(num_domains, 1.0 / num_domains)


def natural_weights(tokens_K: Array) -> Array:
    """Weights proportional to the domains' token counts."""
    return tokens_K / tokens_K.sum()


def temperature_weights(tokens_K: Array, temperature: float) -> Array:
    """w_i ∝ n_i^(1/T), as in multilingual pretraining (1910.10683, section 3.5): T = 1 is natural, T → ∞ uniform."""
    powers_K = (tokens_K / tokens_K.max()) ** (1 / temperature)
    return powers_K / powers_K.sum()
