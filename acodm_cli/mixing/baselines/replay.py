"""Replays the recorded weights of a schedule on the budget of another run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from acodm_cli.errors import UsageError
from acodm_cli.mixing.mixer import Array, Mixer, Observation, Task
from acodm_cli.mixing.options import with_options
from acodm_cli.mixing.settings import ReplayAlignment
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.schedule.timeline import Timeline


@dataclass(frozen=True)
class ReplaySettings:
    """The settings of `ReplayMixer`."""

    schedule: str | None = None
    """The schedule whose weights are followed."""

    by: ReplayAlignment = "progress"
    """What maps the recorded weights on this run's budget. `progress` stretches the schedule over the run; `steps` and
    `tokens` follow it as recorded and hold its last weights when it ends."""

    warm_up: bool = False
    """Whether the weights of the schedule's warm-up are followed too. They were random; without them, the first learned
    weights stand there."""


class ReplayMixer(Mixer):
    """Executes recorded weights, found by the progress, step or token count of the current run."""

    name = "replay"
    open_loop = True
    Settings = ReplaySettings
    files = ("schedule",)
    uses = ("replay_by",)

    def __init__(self, timeline: Timeline, by: ReplayAlignment = "progress") -> None:
        self.timeline = timeline
        self.by = by

    @classmethod
    def make(cls, task: Task) -> Mixer:
        own = with_options(cls.Settings(), task.options, cls.name)
        if task.schedule is not None:
            schedule = task.schedule
        elif own.schedule is None:
            raise UsageError("mixer replay needs --mixer-option schedule=FILE.parquet")
        else:
            schedule = Schedule.load(own.schedule).in_order_of(task.domains)
        # A curriculum by progress says neither steps nor tokens.
        unknown = not schedule.tokens_S[-1] and (own.by == "tokens" or schedule.run.steps is None)
        if own.by != "progress" and len(schedule) > 1 and unknown:
            raise UsageError(f"the schedule does not say at which {own.by} its weights hold; replay it by progress")
        return cls((schedule if own.warm_up else schedule.learned).timeline, own.by)

    def weights(self, observation: Observation) -> Array:
        if self.by == "progress":
            return self.timeline.at_progress((observation.step + 0.5) / observation.total_steps)
        if self.by == "steps":
            return self.timeline.at_step(observation.step + 1)
        return self.timeline.at_tokens(observation.tokens)

    def planned_weights(self) -> Array:
        return self.timeline.weights_SK.astype(np.float64)

    def settings(self) -> dict[str, Any]:
        return {"by": self.by, "recorded_steps": len(self.timeline)}
