"""What can be said of a schedule, as plain values, so that tables, JSON and pages show the same."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.schedule.columns import FORMAT_VERSION, TARGETS
from acodm_cli.schedule.evidence import kept_losses, share_to_best
from acodm_cli.schedule.measures import divergence, entropy, l1
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.schedule.timeline import integral

Array = NDArray[np.float64]

# The number of points of their runs at which schedules are compared.
POINTS = 64
# Text that is seen up to 4 times is worth about as much as new text; what a further repetition is worth falls by e in about 15 (R* in
# Muennighoff et al. 2023, 2305.16264).
MANY_EPOCHS = (4, 16)
BEYOND = tuple(f"beyond_{number}_epochs_at" for number in MANY_EPOCHS)
# The columns of the file that facts are made of.
COLUMNS = (
    "weight",
    "samples",
    "validation_loss",
    "validation_standard_error",
    "validation_bits_per_byte",
    "self_energy",
    "interaction_energy",
    TARGETS,
)


def validation_rows(schedule: Schedule) -> NDArray[np.int64]:
    """Returns the indices of the steps that have validation losses."""
    return np.flatnonzero(np.isfinite(schedule.per_domain["validation_loss"]).all(axis=1))


def describe(name: str, schedule: Schedule) -> dict[str, Any]:
    """Returns the facts of a schedule as JSON values, None for what it does not know. name: the name of the file."""
    weights_SK = schedule.per_domain["weight"]
    rows = validation_rows(schedule)
    losses_SK = schedule.per_domain["validation_loss"]
    samples_K = schedule.per_domain["samples"].sum(axis=0, dtype=np.int64)
    epochs_K = schedule.epochs()
    beyond = {name: schedule.steps_beyond(number) for name, number in zip(BEYOND, MANY_EPOCHS, strict=True)}
    seq_len = schedule.run.seq_len
    mean_K = weights_SK[schedule.warm_up_rows :].mean(axis=0, dtype=np.float64)
    domains = []
    for index, domain in enumerate(schedule.domains):
        values_S = weights_SK[:, index]
        entry: dict[str, Any] = {
            "name": domain,
            "start": float(values_S[0]),
            "end": float(values_S[-1]),
            "mean": float(mean_K[index]),
            "min": float(values_S.min()),
            "max": float(values_S.max()),
            "samples": int(samples_K[index]),
            "tokens": None if seq_len is None else int(samples_K[index]) * seq_len,
            "epochs": None if epochs_K is None else float(epochs_K[index]),
            **{name: None if steps is None else steps[index] for name, steps in beyond.items()},
            "first_validation_loss": float(losses_SK[rows[0], index]) if len(rows) else None,
            "last_validation_loss": float(losses_SK[rows[-1], index]) if len(rows) else None,
            "validation_standard_error": _last_of(schedule, "validation_standard_error", rows, index),
            "validation_bits_per_byte": _last_of(schedule, "validation_bits_per_byte", rows, index),
        }
        domains.append(entry)
    return {
        "file": name,
        "format_version": FORMAT_VERSION,
        "steps": len(schedule),
        "tokens": int(schedule.tokens_S[-1]) - schedule.timeline.tokens_before,
        "warm_up_steps": schedule.run.warm_up,
        "has_policy": schedule.policy is not None,
        "evaluation": None if schedule.run.evaluation is None else asdict(schedule.run.evaluation),
        "evidence": None if schedule.run.evidence is None else asdict(schedule.run.evidence),
        "info": schedule.info,
        "domains": domains,
        "targets": [_of_target(schedule, target) for target in schedule.targets],
        "kept": _kept(schedule),
        "entropy": {at: float(entropy(weights_SK[row].astype(np.float64))) for at, row in (("start", 0), ("end", -1))},
        "energy": energies(schedule),
        "realised_l1": realised_l1(schedule, samples_K),
        "metrics": schedule.metrics,
    }


def _last_of(schedule: Schedule, column: str, rows: NDArray[np.int64], index: int) -> float | None:
    """Returns a domain's last value of a column that not every file has; None where there is none."""
    values_SK = schedule.per_domain.get(column)
    if values_SK is None or not len(rows) or not np.isfinite(values_SK[rows[-1], index]):
        return None
    return float(values_SK[rows[-1], index])


def _of_target(schedule: Schedule, name: str) -> dict[str, Any]:
    """Returns the facts of a target: its losses on the text that is only reported on, at the first and last validation."""
    of_all = schedule.info.get("targets")
    info = of_all.get(name) if isinstance(of_all, dict) else None
    entry: dict[str, Any] = {"name": name, "guided": isinstance(info, dict) and info.get("guided") is True}
    for what in ("loss", "bits_per_byte", "standard_error", "weight"):
        values_S = schedule.per_step.get(f"{TARGETS}{name}.{what}", np.zeros(0))
        known = values_S[np.isfinite(values_S)]
        entry |= {f"{at}_{what}": float(known[row]) if len(known) else None for at, row in (("first", 0), ("last", -1))}
    return entry


def _kept(schedule: Schedule) -> list[dict[str, Any]]:
    """Returns what became of the domains and targets that must not be forgotten: their held-out losses before training and last, and
    how far that is above, as a share. Where this is not known, they are left out."""
    budget = schedule.run.keep_budget
    if budget is None:
        return []
    return [
        {"name": name, "loss_before": before, "last_loss": last, "rise": last / before - 1, "budget": budget}
        for name, (before, last) in kept_losses(schedule).items()
    ]


def share_to_reach(schedule: Schedule, other: Schedule, target: str) -> float | None:
    """Returns which share of the other's steps to its lowest loss on a target this schedule needs to be as low. Losses between
    validations are interpolated. None if it never is, or one of them has no such losses."""
    curves = []
    for each in (schedule, other):
        losses_S = each.per_step.get(f"{TARGETS}{target}.loss")
        if losses_S is None or not np.isfinite(losses_S).any():
            return None
        rows = np.flatnonzero(np.isfinite(losses_S))
        curves.append((each.step_S[rows], losses_S[rows].astype(np.float64)))
    return share_to_best(*curves[0], *curves[1])


def json_value(value: Any, digits: int | None = None) -> Any:
    """Returns the value with None in place of NaN and infinities, which JSON does not have. digits: how many
    significant digits to keep, None for all."""
    if isinstance(value, dict):
        return {name: json_value(part, digits) for name, part in value.items()}
    if isinstance(value, list):
        return [json_value(part, digits) for part in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")


def energies(schedule: Schedule) -> dict[str, dict[str, float]] | None:
    """Returns the medians of self magnitude and interaction energy over the first and the last tenth of the run; None
    if either was not recorded there."""
    tenth = max(1, len(schedule) // 10)
    parts = {}
    for name in ("self_energy", "interaction_energy"):
        values_S = schedule.per_step[name]
        first, last = (part[np.isfinite(part)] for part in (values_S[:tenth], values_S[-tenth:]))
        if not len(first) or not len(last):
            return None
        parts[name] = {"start": float(np.median(first)), "end": float(np.median(last))}
    return parts


def realised_l1(schedule: Schedule, samples_K: NDArray[np.int64]) -> float | None:
    """Returns the L1 distance from the mean weights, weighted by the sequences of each step, to the shares that were
    drawn; None if there are no samples."""
    samples_S = schedule.per_domain["samples"].sum(axis=1, dtype=np.float64)
    if not samples_K.sum():
        return None
    asked_K = samples_S @ schedule.per_domain["weight"] / samples_S.sum()
    return float(l1(asked_K, samples_K / samples_K.sum()))


def distances(first: Schedule, other: Schedule) -> dict[str, Any]:
    """Returns how far another schedule's weights are from the first's at the same share of both runs: L1, and KL(other
    ‖ first) in nats. A domain that one of them lacks has weight 0 there. by_progress: [POINTS]"""
    points = POINTS if max(len(first), len(other)) > 1 else 1
    names = list(dict.fromkeys([*first.domains, *other.domains]))
    first_PK, other_PK = (_of_domains(names, run, _by_progress(run, points)) for run in (first, other))
    by_progress = {"l1": l1(other_PK, first_PK), "kl": divergence(other_PK, first_PK)}
    return {
        name: {"mean": float(values_P.mean()), "max": float(values_P.max()), "by_progress": values_P.tolist()}
        for name, values_P in by_progress.items()
    }


def _of_domains(names: list[str], schedule: Schedule, weights_PK: Array) -> Array:
    """Returns the weights in the order of the names, with 0 for domains that the schedule lacks. [points, names]"""
    weights_PN = np.zeros((len(weights_PK), len(names)))
    weights_PN[:, [names.index(name) for name in schedule.domains]] = weights_PK
    return weights_PN


def _by_progress(schedule: Schedule, points: int) -> Array:
    """Returns the mean weights over equal parts of the run. [points, K]"""
    weights_SK = schedule.per_domain["weight"]
    edges_E = np.linspace(0, len(weights_SK), points + 1)
    return np.diff(integral(weights_SK, edges_E), axis=0) / np.diff(edges_E)[:, None]
