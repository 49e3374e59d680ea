"""Measures how well a run uses its hardware."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import TYPE_CHECKING

from acodm_cli.engine.estimate import flops_per_token, peak_flops_per_second
from acodm_cli.engine.memory import peak_memory

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent
    from acodm_cli.runs.run import Run


class Efficiency:
    """Adds up the time of the parts of a run's steps.

    flops_per_token: the FLOPs of training on one token. peak: the FLOPs per second of all devices together, NaN if not
    known. steps: the number of steps added. seconds_of: the wall time by part; the run itself knows that of checkpoints.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.flops_per_token = flops_per_token(run.trainer.model, run.settings.seq_len)
        self.peak = (peak_flops_per_second(run.compute) or math.nan) * run.ranks.world_size
        self.steps = 0
        self.seconds_of: Counter[str] = Counter()
        self._steps: list[float] = []
        self._validations: list[float] = []

    def add(self, event: StepEvent) -> None:
        """Adds the time of a step's parts."""
        self.steps += 1
        self.seconds_of.update(event.seconds_of)
        self._steps.append(event.seconds)
        if event.validation_K is not None:
            self._validations.append(event.seconds_of["validation"])

    def close(self) -> None:
        """There is nothing to close."""

    def shares(self) -> dict[str, float]:
        """Returns the share of each part, checkpoints included, in the time of all of them. The largest comes first."""
        seconds = self.seconds_of + Counter({"checkpoints": self.run.checkpoint_seconds})
        total = sum(seconds.values())
        return {part: of_part / total for part, of_part in seconds.most_common()}

    def seconds_for(self, steps: int) -> float:
        """Returns how long so many more steps will take, with their validations: by the medians of those so far."""
        validations = steps // self.run.trainer.validate_every
        seconds = steps * statistics.median(self._steps)
        return seconds + validations * (statistics.median(self._validations) if self._validations else 0.0)

    @property
    def memory(self) -> int:
        """The largest number of bytes that one device has held."""
        return peak_memory(self.run.compute)

    @property
    def tokens_per_second(self) -> float:
        """The tokens per second of training, without the time of validation and checkpoints."""
        seconds = sum(self.seconds_of[part] for part in ("mixer", "batch", "model"))
        return self.steps * self.run.settings.tokens_per_step / seconds

    @property
    def mfu(self) -> float:
        """The share of the peak FLOPs that the model's arithmetic uses, NaN if the peak is not known."""
        return self.tokens_per_second * self.flops_per_token / self.peak
