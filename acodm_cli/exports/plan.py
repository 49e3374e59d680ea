"""What every export is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from acodm_cli.schedule.stages import Stage

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """The run of the trainer that is exported to. steps: optimiser steps. batch: global batch in sequences. seq_len:
    tokens per sequence. path: where a domain's tokens lie, with {domain} in place of its name. ranks: data-parallel ranks."""

    steps: int
    batch: int
    seq_len: int
    path: str
    ranks: int = 1

    def path_of(self, domain: str) -> str:
        """Returns where the tokens of this domain lie."""
        return self.path.replace("{domain}", domain)


@dataclass(frozen=True)
class Plan:
    """A schedule as stages on the target's run. domains: the K names. stages: they cover all steps. source: one line
    for comments that says which schedule it is. tokens: of the schedule's own corpus, by domain, where they are known."""

    domains: list[str]
    stages: list[Stage]
    target: Target
    source: str
    tokens: dict[str, float] = field(default_factory=dict)

    @property
    def weights_NK(self) -> Array:
        """The weights that are asked of every stage. [N, K]"""
        return np.stack([stage.weights_K for stage in self.stages])


@dataclass(frozen=True)
class Export:
    """The files of an export. files: name to contents. notes: what the user must know or do, one sentence each."""

    files: dict[str, str]
    notes: list[str]


class Exporter(Protocol):
    """What a module of this package offers.

    TRAINER: name of the trainer, with the version or commit whose source was followed.
    """

    TRAINER: str

    def multiple(self, target: Target) -> int:
        """Returns the number of optimiser steps at whose multiples stages must begin."""
        ...

    def export(self, plan: Plan) -> Export:
        """Returns the files for the trainer. Raises: UsageError if the trainer cannot do what the plan asks."""
        ...

    def realised(self, files: dict[str, str], plan: Plan) -> Array:
        """Returns the shares of sequences that the trainer will draw in every stage, by its own rounding. They are read
        from the files; the plan gives only the domains and the target. [N, K]"""
        ...


def comment(plan: Plan, trainer: str) -> list[str]:
    """Returns the first lines of an exported file, for formats that allow comments."""
    target = plan.target
    return [
        f"Domain weights of {plan.source}, exported by acodm for {trainer}.",
        f"{len(plan.stages)} stages over {target.steps} steps of {target.batch} x {target.seq_len} tokens.",
    ]


def stage_rows(plan: Plan) -> list[dict[str, Any]]:
    """Returns for every stage its first step (from 0), its steps, the samples and tokens drawn before it, and its
    weights by domain."""
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
