"""The record of a run: what it drew and learned, one row of each column per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acodm_cli.mixing.objective import Objective
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, SCHEMA, STEP_COLUMNS, Per
from acodm_cli.schedule.measures import entropy
from acodm_cli.schedule.schedule import Schedule

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent

# The record on disk is written at most so often, and writing it takes at most this share of the time.
LEAST_SECONDS = 5.0
MOST_SHARE = 0.004


# Columns of every schedule that are a mixer's to fill.
MIXER_COLUMNS = ("critic_loss", "actor_objective")


class Recorder:
    """Collects the columns of a schedule, a row per step. domains: the names of the K domains, in order. objective: what the
    run is for. targets: the names of the targets that are measured, in order."""

    def __init__(self, domains: list[str], objective: Objective, targets: Sequence[str] = ()) -> None:
        self.domains = domains
        self.objective = objective
        self.targets = targets
        self.rows: dict[str, list[Any]] = {name: [] for name in ("step", "tokens", *DOMAIN_COLUMNS, *STEP_COLUMNS)}
        self.metrics: dict[str, Per] = {}
        self.phases: list[dict[str, Any]] = []

    def add(self, event: StepEvent) -> None:
        """Records a step. A metric is NaN in the steps that lack it, also in those before its first."""
        steps = len(self.rows["step"])
        for metric, number in event.report.metrics.items():
            self._check_metric(metric, number)
        row: dict[str, Any] = {
            "step": event.step,
            "tokens": event.tokens,
            "weight": event.weights_K,
            "samples": event.samples_K,
            "loss": event.losses_K,
            "reward": event.report.reward_K,
            "validation_loss": event.validation_K,
            "train_loss": event.train_loss,
            "learning_rate": event.learning_rate,
            "interaction_energy": event.interaction_energy,
            "self_energy": event.self_energy,
            "entropy": float(entropy(event.weights_K)),
            **self._measured(event),
            **event.report.metrics,
        }
        for name, value in row.items():
            if name not in self.rows:
                self.metrics[name] = "domain" if isinstance(value, np.ndarray) else "step"
                self.rows[name] = [self._missing(name)] * steps
        for name, values in self.rows.items():
            value = row.get(name)
            values.append(self._missing(name) if value is None else value)
        self._add_phase(event.report.phase, event.step)

    def _measured(self, event: StepEvent) -> dict[str, Any]:
        """Returns what validation measured besides losses, by column."""
        if event.validation is None:
            return {}
        measured, number = event.validation, len(self.domains)
        found: dict[str, Any] = {
            "validation_standard_error": measured.errors_J[:number],
            "validation_bits_per_byte": measured.bits_J[:number],
            "objective": self.objective.value(self.objective.counted(measured.losses_J, number, self.targets)),
        }
        for index, name in enumerate(self.targets, number):
            found[f"target.{name}.loss"] = float(measured.losses_J[index])
            found[f"target.{name}.standard_error"] = float(measured.errors_J[index])
            found[f"target.{name}.bits_per_byte"] = float(measured.bits_J[index])
        return found

    def close(self) -> None:
        """There is nothing to close."""

    def _add_phase(self, name: str, step: int) -> None:
        """A step that was skipped belongs to the phase around it."""
        if self.phases and (self.phases[-1]["name"] == name or name.startswith("skipped")):
            self.phases[-1]["last_step"] = step
        elif name and not name.startswith("skipped"):
            self.phases.append({"name": name, "first_step": step, "last_step": step})

    def _check_metric(self, metric: str, value: Any) -> None:
        """Asserts that a metric has a name of its own, and is a number or an array with one per domain."""
        own = metric in MIXER_COLUMNS or metric not in SCHEMA.names
        assert own, f"a metric cannot be named {metric!r}: every schedule has that column"
        of_domains = isinstance(value, np.ndarray) and value.shape == (len(self.domains),)
        assert of_domains or isinstance(value, Real), (
            f"metric {metric!r} is neither a number nor an array with one per domain"
        )
        before, now = self.metrics.get(metric), "domain" if of_domains else "step"
        before = "step" if metric in MIXER_COLUMNS else before
        assert before in (None, now), f"metric {metric!r} is per {now}, and was per {before}"

    def _of_domains(self, name: str) -> bool:
        return name in DOMAIN_COLUMNS or self.metrics.get(name) == "domain"

    def _missing(self, name: str) -> Any:
        return np.full(len(self.domains), np.nan) if self._of_domains(name) else np.nan

    def schedule(self, info: dict[str, Any], policy: bytes | None) -> Schedule:
        """Returns what has been recorded so far as a schedule. At least one step must have been recorded."""
        columns = [name for name in self.rows if name not in ("step", "tokens")]
        return Schedule(
            domains=self.domains,
            step_S=np.array(self.rows["step"], dtype=np.int64),
            tokens_S=np.array(self.rows["tokens"], dtype=np.int64),
            per_domain={
                name: np.stack(self.rows[name]).astype(DOMAIN_COLUMNS.get(name, np.float32))
                for name in columns
                if self._of_domains(name)
            },
            per_step={
                name: np.array(self.rows[name], dtype=np.float32) for name in columns if not self._of_domains(name)
            },
            info=info | ({"phase": [dict(phase) for phase in self.phases]} if self.phases else {}),
            policy=policy,
            metrics=dict(self.metrics),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns all rows as tensors."""
        rows = {name: torch.from_numpy(np.array(values)) for name, values in self.rows.items()}
        return {"rows": rows, "metrics": dict(self.metrics), "phases": [dict(phase) for phase in self.phases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.rows = {name: list(values.numpy()) for name, values in state["rows"].items()}
        self.metrics = dict(state["metrics"])
        self.phases = [dict(phase) for phase in state["phases"]]


class LiveRecord:
    """Writes what a run has recorded so far, so that it can be looked at from another terminal while it trains.

    schedule: gives the record so far, without a policy. path: where it is written, now and then.
    """

    def __init__(self, schedule: Callable[[], Schedule], path: Path) -> None:
        self.schedule = schedule
        self.path = path
        self.next = 0.0

    def add(self, event: StepEvent) -> None:
        """Writes the record if it is due. If this fails, it is not tried again: the checkpoints hold the record too."""
        started = time.monotonic()
        if started < self.next:
            return
        try:
            self.schedule().write(self.path, durable=False)
        except OSError:
            self.next = float("inf")
            return
        now = time.monotonic()
        self.next = now + max(LEAST_SECONDS, (now - started) / MOST_SHARE)

    def close(self) -> None:
        """There is nothing to close; the run's end removes the file."""
