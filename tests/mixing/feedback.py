"""What a mixer is told of a step, made up."""

from __future__ import annotations

from typing import Any

import numpy as np

from acodm_cli.mixing.mixer import Array, Feedback, Observation


def observation(step: int = 10, losses: tuple[float, ...] = (3.0, 2.0, 4.0), total_steps: int = 100) -> Observation:
    """Of three domains and five depths, before the batch of `step`."""
    norms = np.linspace(1, 2, 5)
    return Observation(
        step=step,
        total_steps=total_steps,
        tokens=100 * step,
        total_tokens=100 * total_steps,
        learning_rate=1e-3,
        samples_K=np.array([4.0, 2.0, 2.0]),
        losses_K=np.array(losses),
        previous_losses_K=np.array(losses) + 0.1,
        max_loss=6.0,
        weight_norms_L=norms * 1.1,
        initial_norms_L=norms,
        update_norms_L=norms * 0.01,
    )


def feedback(
    weights: tuple[float, ...],
    step: int = 11,
    losses: tuple[float, ...] = (3.0, 2.0, 4.0),
    samples: tuple[int, ...] = (4, 2, 2),
    **found: Any,
) -> Feedback:
    """step: the number of steps done, this one included. found: gram_KK, self_K, excess_K, guide_KJ, as nested lists."""
    given: dict[str, Array | None] = {"gram_KK": None, "self_K": None, "excess_K": None}
    given |= {name: np.array(value, dtype=np.float64) for name, value in found.items()}
    before, after = observation(step - 1, losses), observation(step, losses)
    return Feedback(before, np.array(weights), np.array(samples, dtype=np.float64), next_observation=after, **given)


def random_feedback(generator: np.random.Generator, step: int, weights_K: Array) -> Feedback:
    gradients_KP = generator.standard_normal((3, 7))
    losses = tuple(generator.uniform(1, 5, 3))
    return feedback(
        tuple(weights_K),
        step,
        losses,
        tuple(generator.multinomial(8, weights_K / weights_K.sum())),
        gram_KK=gradients_KP @ gradients_KP.T,
        self_K=generator.uniform(0, 1, 3),
        excess_K=generator.uniform(0, 1, 3),
        guide_KJ=np.where(generator.random((3, 1)) < 0.2, np.nan, generator.normal(1, 1, (3, 2))),
    )
