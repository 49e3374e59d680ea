"""What every export begins with and ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from acodm_cli.schedule.stages import Stage

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """The run of the trainer that is exported to. steps: optimiser steps. batch: global batch in sequences. seq_len: tokens per
    sequence. path: where a domain's tokens lie, with {domain} for its name."""

    steps: int
    batch: int
    seq_len: int
    path: str

    def path_of(self, domain: str) -> str:
        return self.path.replace("{domain}", domain)


@dataclass(frozen=True)
class Plan:
    """A schedule as stages on the target's run. domains: K names. stages: they cover all steps. source: one line that says which
    schedule it is, for comments."""

    domains: list[str]
    stages: list[Stage]
    target: Target
    source: str

    @property
    def weights_NK(self) -> Array:
        """What was asked of every stage."""
        return np.stack([stage.weights_K for stage in self.stages])


@dataclass(frozen=True)
class Export:
    """files: name to contents. notes: what the user must know or do; one sentence each."""

    files: dict[str, str]
    notes: list[str]


class Exporter(Protocol):
    """What a module of this package offers.

    TRAINER: name of the trainer, with the version or commit whose source was followed.
    """

    TRAINER: str

    def multiple(self, target: Target) -> int:
        """Stages must begin at multiples of so many optimiser steps."""
        ...

    def export(self, plan: Plan) -> Export:
        """Raises: UsageError if the trainer cannot do what the plan asks."""
        ...

    def realised(self, files: dict[str, str], plan: Plan) -> Array:
        """Shares of sequences that the trainer will draw in every stage, by its own rounding, read from the files; the plan gives no
        more than the domains and the target. [N, K]"""
        ...


def comment(plan: Plan, trainer: str) -> list[str]:
    """The first lines of a file that allows comments."""
    target = plan.target
    return [
        f"Domain weights of {plan.source}, exported by acodm for {trainer}.",
        f"{len(plan.stages)} stages over {target.steps} steps of {target.batch} x {target.seq_len} tokens.",
    ]


def stage_rows(plan: Plan) -> list[dict[str, Any]]:
    """Every stage: first step (from 0), steps, samples and tokens drawn before it, weights by domain."""
    target = plan.target
    return [
        {
            "first_step": stage.first,
            "steps": stage.steps,
            "first_sample": stage.first * target.batch,
            "first_token": stage.first * target.batch * target.seq_len,
            "weights": dict(zip(plan.domains, stage.weights_K.tolist(), strict=True)),
        }
        for stage in plan.stages
    ]
