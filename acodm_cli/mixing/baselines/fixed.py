"""Static weights that the user gives: as text, as a JSON file, or as the average of a schedule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from acodm_cli.errors import UsageError
from acodm_cli.mixing.baselines.static import StaticMixer
from acodm_cli.mixing.mixer import Array, Mixer, Task
from acodm_cli.mixing.options import with_options
from acodm_cli.schedule.schedule import Schedule

MAX_WEIGHTS_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class FixedSettings:
    """The settings of `FixedMixer`. One of weights, file and schedule must be given. Weights need not sum to 1."""

    weights: str | None = None
    """The weights as text, such as code:0.3,web:0.7."""

    file: str | None = None
    """A JSON file with an object of domain names to weights."""

    schedule: str | None = None
    """A schedule whose weights are averaged over its steps, or taken from the last one."""

    of: Literal["mean", "last"] = "mean"
    """Which weights of the schedule are taken."""

    def __post_init__(self) -> None:
        # To give none of them is no error here, as options are read into the defaults; `FixedMixer.make` refuses it.
        if sum(source is not None for source in (self.weights, self.file, self.schedule)) > 1:
            raise ValueError("give one of weights=, file= and schedule=")


class FixedMixer(StaticMixer):
    """Executes weights that the user gives, the same at every step."""

    name = "fixed"
    Settings = FixedSettings
    files = ("file", "schedule")

    @classmethod
    def make(cls, task: Task) -> Mixer:
        own = with_options(cls.Settings(), task.options, cls.name)
        if own.schedule is not None:
            schedule = Schedule.load(own.schedule).in_order_of(task.domains)
            weights_SK = schedule.weights_SK[schedule.warm_up_rows :]
            weights_K = weights_SK.mean(axis=0) if own.of == "mean" else weights_SK[-1]
            return cls(weights_K / weights_K.sum())
        if own.file is not None:
            given = _weights_of_file(Path(own.file))
        elif own.weights is not None:
            given = _weights_of_text(own.weights)
        else:
            raise UsageError(
                "mixer fixed needs --mixer-option weights=DOMAIN:WEIGHT,…, file=WEIGHTS.json or schedule=FILE.parquet"
            )
        return cls(_in_order(given, task.domains))


def _in_order(given: dict[str, float], domains: list[str]) -> Array:
    """Returns the given weights on the simplex, in the order of the domains. [K]"""
    if set(given) != set(domains):
        odd = sorted(set(given) ^ set(domains))
        raise UsageError(
            f"mixer fixed: the weights and the corpus differ in {', '.join(odd)}; give each domain its weight"
        )
    weights_K = np.array([given[domain] for domain in domains], dtype=np.float64)
    if not np.isfinite(weights_K).all() or (weights_K < 0).any() or weights_K.sum() <= 0:
        raise UsageError("mixer fixed: weights must be finite, not negative, and not all zero")
    return weights_K / weights_K.sum()


def _weights_of_text(text: str) -> dict[str, float]:
    pairs = []
    for part in text.split(","):
        domain, colon, value = part.rpartition(":")
        try:
            pairs.append((domain.strip(), float(value) if colon else float("nan")))
        except ValueError:
            raise UsageError(f"mixer fixed: {part!r} is not DOMAIN:WEIGHT") from None
    return _each_once(pairs)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for domain, weight in pairs:
        if domain in weights:
            raise UsageError(f"mixer fixed: domain {domain} has two weights; give it one")
        weights[domain] = weight
    return weights


def _weights_of_file(path: Path) -> dict[str, float]:
    try:
        if path.stat().st_size > MAX_WEIGHTS_FILE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_WEIGHTS_FILE_BYTES >> 20} MiB; not a file of weights")
        found = json.loads(path.read_text(), object_pairs_hook=_each_once)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON; give an object of domain names to weights") from None
    if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
        raise UsageError(f"{path} is not a JSON object of domain names to weights")
    return found
