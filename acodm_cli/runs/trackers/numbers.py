"""The numbers of a step, by name, as every tracker gets them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from acodm_cli.schedule.measures import entropy

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent
    from acodm_cli.mixing.mixer import Array


def numbers_of(event: StepEvent, domains: list[str], tokens_per_step: int) -> dict[str, float]:
    """Returns the finite numbers of a step by name. Those of one domain are named KIND/DOMAIN, such as weights/code.
    Numbers that are not known are left out."""
    found = {
        "train/loss": event.train_loss,
        "train/learning_rate": event.learning_rate,
        "train/gradient_norm": event.gradient_norm,
        "train/tokens": float(event.tokens),
        "train/tokens_per_second": tokens_per_step / event.seconds,
        "mixture/entropy": float(entropy(event.weights_K)),
        "mixture/self_energy": event.self_energy,
        "mixture/interaction_energy": event.interaction_energy,
    }
    found |= _by_domain("weights", domains, event.weights_K)
    found |= _by_domain("loss", domains, event.losses_K)
    if event.validation_K is not None:
        found |= _by_domain("validation", domains, event.validation_K)
        found["validation/mean"] = float(event.validation_K.mean())
    if event.report.reward_K is not None:
        found |= _by_domain("reward", domains, event.report.reward_K)
    for name, value in event.report.metrics.items():
        found |= _by_domain(name, domains, value) if isinstance(value, np.ndarray) else {f"mixer/{name}": float(value)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _by_domain(kind: str, domains: list[str], values_K: Array) -> dict[str, float]:
    values: Iterable[float] = values_K.tolist()
    return {f"{kind}/{domain}": value for domain, value in zip(domains, values, strict=True)}
