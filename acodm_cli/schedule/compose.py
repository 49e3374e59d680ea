"""New schedules out of others: a part, a thinner one, a smoother one, an average, a mean over seeds.

What is learned is not composed: none of them holds a policy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.errors import UsageError
from acodm_cli.schedule.measures import entropy
from acodm_cli.schedule.schedule import Schedule

Array = NDArray[np.float64]


def between(schedule: Schedule, first: int | None, last: int | None) -> Schedule:
    """Its steps from `first` to `last`, both included; None for no limit.

    Raises:
        UsageError: it has no steps there.
    """
    step_S = schedule.step_S
    keep_S = (step_S >= (step_S[0] if first is None else first)) & (step_S <= (step_S[-1] if last is None else last))
    if not keep_S.any():
        raise UsageError(f"there are no steps in that range; the schedule has {step_S[0]} to {step_S[-1]}")
    return _rows(schedule, np.flatnonzero(keep_S), f"steps {first or ''}:{last or ''}")


def _rows(schedule: Schedule, rows: NDArray[np.int64], what: str) -> Schedule:
    return _composed(
        schedule,
        what,
        step_S=schedule.step_S[rows],
        tokens_S=schedule.tokens_S[rows],
        per_domain={name: values_SK[rows] for name, values_SK in schedule.per_domain.items()},
        per_step={name: values_S[rows] for name, values_S in schedule.per_step.items()},
    )


def thin(schedule: Schedule, every: int) -> Schedule:
    """One row for every so many steps, at the last of them: means of weights, losses and the rest, sums of samples."""
    starts_R = np.arange(0, len(schedule), every)
    last_R = np.append(starts_R[1:], len(schedule)) - 1
    return _composed(
        schedule,
        f"means of {every} steps",
        step_S=schedule.step_S[last_R],
        tokens_S=schedule.tokens_S[last_R],
        per_domain={
            name: np.add.reduceat(values_SK, starts_R) if name == "samples" else means(values_SK, starts_R)
            for name, values_SK in schedule.per_domain.items()
        },
        per_step={name: means(values_S, starts_R) for name, values_S in schedule.per_step.items()},
    )


def average(schedule: Schedule) -> Schedule:
    """Its mean weights as a schedule of one row: the static mixture that DoReMi and DoGE train their target with."""
    return replace(thin(schedule, len(schedule)), info=_info(schedule, "average"))


def smooth(schedule: Schedule, steps: int) -> Schedule:
    """Weights, losses and rewards as centred moving averages over so many steps, fewer at the ends."""
    starts = np.maximum(np.arange(len(schedule)) - (steps - 1) // 2, 0)
    ends = np.minimum(np.arange(len(schedule)) + steps // 2 + 1, len(schedule))
    per_domain = dict(schedule.per_domain)
    for name in per_domain.keys() & {"weight", "loss", "reward"}:
        values_SK = per_domain[name].astype(np.float64)
        known_SK = np.isfinite(values_SK)
        zero_1K = np.zeros((1, values_SK.shape[1]))
        sums_SK = np.concatenate([zero_1K, np.where(known_SK, values_SK, 0.0).cumsum(axis=0)])
        counts_SK = np.concatenate([zero_1K, known_SK.cumsum(axis=0)])
        count_SK = counts_SK[ends] - counts_SK[starts]
        mean_SK = np.divide(
            sums_SK[ends] - sums_SK[starts], count_SK, out=np.full_like(values_SK, np.nan), where=count_SK > 0
        )
        per_domain[name] = mean_SK.astype(schedule.per_domain[name].dtype)
    return _composed(schedule, f"moving average of {steps} steps", per_domain=per_domain)


def merge(schedules: list[Schedule]) -> tuple[Schedule, NDArray[np.float32]]:
    """The mean of several runs, on the steps of the first, aligned by progress; and the standard deviation over runs of the weights,
    of n - 1, by step and domain. [S, K]

    Raises:
        UsageError: they are of different domains.
    """
    first = schedules[0]
    ordered = [first, *(other.in_order_of(first.domains) for other in schedules[1:])]
    at_S = (np.arange(len(first)) + 0.5) / len(first)
    stacks = {
        name: np.stack([_at_progress(run.per_domain[name], at_S) for run in ordered])
        for name in first.per_domain
        if all(name in run.per_domain for run in ordered)
    }
    mean = _composed(
        first,
        f"mean of {len(schedules)} runs",
        per_domain={
            name: np.rint(stack.mean(axis=0)).astype(np.int32) if name == "samples" else stack.mean(axis=0)
            for name, stack in stacks.items()
        },
        per_step={
            name: np.stack([_at_progress(run.per_step[name], at_S) for run in ordered]).mean(axis=0)
            for name in first.per_step
        },
    )
    deviation_SK = stacks["weight"].std(axis=0, ddof=1) if len(schedules) > 1 else np.zeros_like(stacks["weight"][0])
    info = mean.info | {"seeds": [run.info.get("seed") for run in ordered]}
    return replace(mean, info=info), deviation_SK.astype(np.float32)


def _at_progress(values_SX: NDArray[Any], at_R: Array) -> NDArray[np.float32]:
    """Of the step whose interval of the run holds each point. Validations are rare, and would be lost between steps."""
    rows_R = np.minimum((at_R * len(values_SX)).astype(np.int64), len(values_SX) - 1)
    return values_SX[rows_R].astype(np.float32)


def means(values_SX: NDArray[Any], starts_R: NDArray[np.int64]) -> NDArray[np.float32]:
    """Means of what is known over the spans that begin at these rows; NaN where nothing is. [R, …]"""
    known_SX = np.isfinite(values_SX)
    if known_SX.all():
        counts = np.diff(starts_R, append=len(values_SX)).reshape(-1, *[1] * (values_SX.ndim - 1))
        return (np.add.reduceat(values_SX, starts_R, dtype=np.float64) / counts).astype(np.float32)
    counts_RX = np.add.reduceat(known_SX, starts_R, dtype=np.int64)
    sums_RX = np.add.reduceat(np.where(known_SX, values_SX, 0), starts_R, dtype=np.float64)
    return np.divide(sums_RX, counts_RX, out=np.full(sums_RX.shape, np.nan), where=counts_RX > 0).astype(np.float32)


def _composed(schedule: Schedule, what: str, **changes: Any) -> Schedule:
    composed = replace(schedule, policy=None, info=_info(schedule, what), **changes)
    entropy_S = entropy(composed.weights_SK).astype(np.float32)
    return replace(composed, per_step=composed.per_step | {"entropy": entropy_S})


def _info(schedule: Schedule, what: str) -> dict[str, Any]:
    before = schedule.info.get("composed")
    return schedule.info | {"composed": [*(before if isinstance(before, list) else []), what]}
