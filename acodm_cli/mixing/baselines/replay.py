"""Replays the recorded weights of a schedule on the budget of another run."""

from __future__ import annotations

from typing import Any

from acodm_cli.config import ReplayAlignment
from acodm_cli.mixing.mixer import Array, Mixer, Observation
from acodm_cli.schedule.timeline import Timeline


class ReplayMixer(Mixer):
    """Recorded weights by the progress, step or token count of the current run.

    by: `progress` stretches the schedule over this run's budget, `steps` and `tokens` follow it as recorded and hold
    its last weights when it ends.
    """

    name = "replay"

    def __init__(self, timeline: Timeline, by: ReplayAlignment) -> None:
        self.timeline = timeline
        self.by = by

    def weights(self, observation: Observation) -> Array:
        if self.by == "progress":
            return self.timeline.at_progress((observation.step + 0.5) / observation.total_steps)
        if self.by == "steps":
            return self.timeline.at_step(observation.step + 1)
        return self.timeline.at_tokens(observation.tokens)

    def settings(self) -> dict[str, Any]:
        return {"by": self.by, "recorded_steps": len(self.timeline)}
