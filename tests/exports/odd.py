"""A plan with names that YAML and Python must quote, and weights that vanish."""

from __future__ import annotations

import numpy as np

from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.stages import Stage

NAMES = ["web pages", "on", "Code", "code", "a.b: #x", "123", "quote'\"s", "Ünïcode/$y", "tiny", "none"]


def odd_plan(path: str = "data/{domain}") -> Plan:
    weights = [
        np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.0499, 0.0001, 0]),
        np.array([0.05, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0, 0]),
        np.array([0.1, 0.1, 0.4, 0.1, 0.1, 0.1, 0.03, 0.03, 0.04, 0]),
    ]
    stages = [Stage(64 * number, 64, weights_K) for number, weights_K in enumerate(weights)]
    return Plan(NAMES, stages, Target(192, 96, 16, path), "test.parquet")


def small_plan(*weights: list[float], steps: int = 64, batch: int = 96) -> Plan:
    """A stage of so many steps for every list of weights."""
    stages = [Stage(steps * number, steps, np.array(weights_K)) for number, weights_K in enumerate(weights)]
    target = Target(steps * len(weights), batch, 16, "data/{domain}")
    return Plan([f"d{index}" for index in range(len(weights[0]))], stages, target, "test.parquet")
