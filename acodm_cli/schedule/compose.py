"""New schedules made out of others: a part, a thinner one, a smoother one, an average, a mean over seeds.

Policies are not composed: none of the new schedules holds one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.errors import UsageError
from acodm_cli.schedule.measures import entropy, in_single, l1
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.schedule.timeline import integral
from acodm_cli.writing import few

Array = NDArray[np.float64]

# The column of a mean schedule that holds the standard deviation of the weights over its runs.
WEIGHT_SD = "weight_sd"


def between(schedule: Schedule, first: int | None, last: int | None) -> Schedule:
    """Returns the part of a schedule from step `first` to step `last`, both included; None sets no limit.

    Raises:
        UsageError: the schedule has no steps in that range.
    """
    step_S = schedule.step_S
    keep_S = (step_S >= (step_S[0] if first is None else first)) & (step_S <= (step_S[-1] if last is None else last))
    if not keep_S.any():
        raise UsageError(f"there are no steps in that range; the schedule has {step_S[0]} to {step_S[-1]}")
    part = _composed(
        schedule,
        f"steps {'' if first is None else first}:{'' if last is None else last}",
        step_S=step_S[keep_S],
        tokens_S=schedule.tokens_S[keep_S],
        per_domain={name: values_SK[keep_S] for name, values_SK in schedule.per_domain.items()},
        per_step={name: values_S[keep_S] for name, values_S in schedule.per_step.items()},
    )
    return replace(part, info=part.info | {"steps": int(part.step_S[-1] - part.step_S[0]) + 1})


def thin(schedule: Schedule, every: int) -> Schedule:
    """Returns a schedule with a row for about every `every` rows: means of weights, losses and the rest, sums of
    samples. The rows are equal parts of the run, as far as whole steps allow, since that is how a schedule is read."""
    starts_R = spans(len(schedule), every)
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


def spans(rows: int, every: int) -> NDArray[np.int64]:
    """Returns the row at which each span of about `every` rows begins."""
    parts = -(-rows // min(every, rows))
    return np.linspace(0, rows, parts, endpoint=False).astype(np.int64)


def average(schedule: Schedule) -> Schedule:
    """Returns the mean weights as a schedule of one row: the static mixture that DoReMi and DoGE train their target
    with. Warm-up is left out. Only weights, samples and entropy describe such a mixture; all other columns become NaN."""
    mean = thin(schedule, len(schedule))
    after = schedule.weights_SK[schedule.warm_up_rows :].mean(axis=0).astype(np.float32)
    mean = _composed(mean, "", per_domain=mean.per_domain | {"weight": after[None, :]})
    kept = {"weight", "samples"}
    per_domain = {n: v if n in kept else np.full_like(v, np.nan) for n, v in mean.per_domain.items()}
    per_step = {n: v if n == "entropy" else np.full_like(v, np.nan) for n, v in mean.per_step.items()}
    return replace(mean, per_domain=per_domain, per_step=per_step, info=_info(schedule, "average"))


def smooth(schedule: Schedule, steps: int) -> Schedule:
    """Returns the schedule with weights, losses, rewards and per-step values as centred moving averages over `steps`
    rows, fewer at the ends. Samples and validation losses stay as they are."""
    steps = min(steps, 2 * len(schedule))
    starts = np.maximum(np.arange(len(schedule)) - (steps - 1) // 2, 0)
    ends = np.minimum(np.arange(len(schedule)) + steps // 2 + 1, len(schedule))

    def smoothed(values_SX: NDArray[Any]) -> NDArray[np.float32]:
        known_SX = np.isfinite(values_SX)
        zero = np.zeros((1, *values_SX.shape[1:]))
        sums_SX = np.concatenate([zero, np.where(known_SX, values_SX, 0.0).cumsum(axis=0, dtype=np.float64)])
        counts_SX = np.concatenate([zero, known_SX.cumsum(axis=0)])
        count_SX = counts_SX[ends] - counts_SX[starts]
        unknown_SX = np.full(values_SX.shape, np.nan)
        mean_SX = np.divide(sums_SX[ends] - sums_SX[starts], count_SX, out=unknown_SX, where=count_SX > 0)
        return mean_SX.astype(np.float32)

    averaged = schedule.per_domain.keys() - {"samples", "validation_loss"}
    return _composed(
        schedule,
        f"moving average of {steps} steps",
        per_domain=schedule.per_domain | {name: smoothed(schedule.per_domain[name]) for name in averaged},
        per_step={name: smoothed(values_S) for name, values_S in schedule.per_step.items()},
    )


def _same(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return False
    return all(np.array_equal(values, other[name], equal_nan=True) for name, values in one.items())


def merge(schedules: list[Schedule]) -> tuple[Schedule, NDArray[np.float32]]:
    """Returns the mean of several runs, and the standard deviation of their weights over the runs. [S, K]

    The runs are aligned by progress, on the steps of the first. The weights of warm-up are not part of the mean: each run's
    first learned weights stand there. The deviation divides by n - 1.

    Raises:
        UsageError: the runs have different domains, or one is there twice.
    """
    first = schedules[0]
    for number, one in enumerate(schedules):
        for earlier, other in enumerate(schedules[:number]):
            if one.info == other.info and _same(one.per_domain, other.per_domain):
                raise UsageError(
                    f"files {earlier + 1} and {number + 1} are the same run, which would count twice; leave one out"
                )
    ordered = [first, *(other.in_order_of(first.domains) for other in schedules[1:])]
    at_S = (np.arange(len(first)) + 0.5) / len(first)
    stacks = {
        name: np.stack([_at_progress(run.learned.per_domain[name], at_S) for run in ordered])
        for name in first.per_domain
        if all(name in run.per_domain for run in ordered)
    }
    mean = _composed(
        first,
        f"mean of {len(schedules)} runs",
        per_domain={
            name: _mean_samples(ordered, len(first)) if name == "samples" else stack.mean(axis=0)
            for name, stack in stacks.items()
        },
        per_step={
            name: np.stack([_at_progress(run.per_step[name], at_S) for run in ordered]).mean(axis=0)
            for name in first.per_step
            if all(name in run.per_step for run in ordered)
        },
        metrics={
            name: per
            for name, per in first.metrics.items()
            if all(run.metrics.get(name) == per and _holds(run, name) for run in ordered)
        },
    )
    deviation_SK = stacks["weight"].std(axis=0, ddof=1) if len(schedules) > 1 else np.zeros_like(stacks["weight"][0])
    # These describe one of the runs, and are not true of their mean.
    info = {
        name: value
        for name, value in mean.info.items()
        if name not in ("seed", "title", "paper", "source", "caveat", "phase", "evaluation", "episodes")
    }
    info["seeds"] = [seed for run in ordered for seed in run.run.seeds]
    mixers = dict.fromkeys(run.run.mixer for run in ordered if run.run.mixer)
    if len(mixers) > 1:
        info["mixer"] = {"name": ", ".join(mixers)}
    return replace(mean, info=info), deviation_SK.astype(np.float32)


def nearest(mean: Schedule, runs: list[Schedule]) -> int:
    """Returns the index of the run whose learned weights are nearest to the mean of the runs, in L1 over progress."""
    at_S = (np.arange(len(mean)) + 0.5) / len(mean)
    far = [
        l1(_at_progress(run.in_order_of(mean.domains).learned.weights_SK, at_S).astype(np.float64), mean.weights_SK)
        for run in runs
    ]
    return int(np.argmin([far_S.mean() for far_S in far]))


def unlike(runs: list[Schedule]) -> list[str]:
    """Returns in what the runs differ besides their seeds, so that their mean may be the mean of unlike things."""
    found = []
    for what in ("command", "mixer", "model", "corpus", "tokenizer", "steps", "batch", "seq_len", "lr_schedule"):
        values = list(dict.fromkeys(str(getattr(run.run, what)) for run in runs))
        if len(values) > 1:
            found.append(f"{what.replace('_', ' ')} ({few([value or '?' for value in values])})")
    return found


def _holds(schedule: Schedule, column: str) -> bool:
    return column in schedule.per_step or column in schedule.per_domain


def _mean_samples(runs: list[Schedule], rows: int) -> NDArray[np.int32]:
    """Returns whole samples. Their running sums are the means over the runs of the runs' own, rounded. [rows, K]"""
    edges_E = np.linspace(0, 1, rows + 1)
    sums = [integral(run.per_domain["samples"], edges_E * len(run)) for run in runs]
    return np.diff(np.rint(np.mean(sums, axis=0)), axis=0).astype(np.int32)


def _at_progress(values_SX: NDArray[Any], at_R: Array) -> NDArray[np.float32]:
    """Returns the values of the step whose interval of the run holds each point. Validations are rare, and would be
    lost between steps."""
    rows_R = np.minimum((at_R * len(values_SX)).astype(np.int64), len(values_SX) - 1)
    return values_SX[rows_R].astype(np.float32)


def means(values_SX: NDArray[Any], starts_R: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the means of the known values over the spans that begin at these rows; NaN where none is known. [R, …]"""
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
    return replace(
        composed,
        per_domain=composed.per_domain | {"weight": in_single(composed.weights_SK)},
        per_step=composed.per_step | {"entropy": entropy_S},
    )


def _info(schedule: Schedule, what: str) -> dict[str, Any]:
    before = schedule.info.get("composed")
    # A study has not measured what is composed here.
    info = {name: value for name, value in schedule.info.items() if name != "evidence"}
    return info | {"composed": [*(before if isinstance(before, list) else []), what]}
