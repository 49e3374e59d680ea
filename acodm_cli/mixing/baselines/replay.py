"""Replays the recorded weights of a schedule on the budget of another run."""

from __future__ import annotations

from typing import Any

import numpy as np

from acodm_cli.config import ReplayAlignment
from acodm_cli.mixing.mixer import Array, Mixer, Observation


class ReplayMixer(Mixer):
    """Weights recorded at S steps, looked up by the progress, step or token count of the current run.

    weights_SK: recorded weights. tokens_S: cumulative predicted tokens after each recorded step. by:
    `progress` stretches the schedule over this run's budget, `steps` and `tokens` follow it as recorded and hold
    its last weights when it ends. Between recorded points weights are interpolated linearly, which keeps them on
    the simplex.
    """

    name = "replay"

    def __init__(self, weights_SK: Array, tokens_S: Array, by: ReplayAlignment) -> None:
        assert len(weights_SK) == len(tokens_S) > 0
        self.weights_SK = weights_SK
        self.by = by
        # Tokens already consumed when each recorded row's weights were put to use.
        self.tokens_before_S = np.concatenate([[0.0], tokens_S[:-1]])

    def weights(self, observation: Observation) -> Array:
        recorded = len(self.weights_SK)
        if self.by == "progress":
            # Steps are intervals of the budget: align their midpoints, so that equal budgets replay exactly.
            position = (observation.step + 0.5) / observation.total_steps * recorded - 0.5
        elif self.by == "steps":
            position = float(observation.step)
        else:
            position = float(np.interp(observation.tokens, self.tokens_before_S, np.arange(recorded)))
        position = min(max(position, 0.0), recorded - 1.0)
        below = int(position)
        above = min(below + 1, recorded - 1)
        fraction = position - below
        return (1 - fraction) * self.weights_SK[below] + fraction * self.weights_SK[above]

    def settings(self) -> dict[str, Any]:
        return {"by": self.by, "recorded_steps": len(self.weights_SK)}
