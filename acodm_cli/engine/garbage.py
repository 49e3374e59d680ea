"""Keeps Python's garbage collector out of steps.

A full collection looks at every object that the process has, hundreds of thousands with torch and transformers, and comes when it
comes: on another rank in another step, so that all wait for each in turn.
"""

from __future__ import annotations

import gc
from types import TracebackType

_EVERY = 50


class CollectedBetweenSteps:
    """A context in which garbage is collected after validations and every 50th step, and never else. What is there when the first
    step has ended is not looked at again."""

    def __enter__(self) -> CollectedBetweenSteps:
        self.was_enabled = gc.isenabled()
        self.frozen = False
        gc.disable()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        gc.unfreeze()
        if self.was_enabled:
            gc.enable()

    def step_ended(self, number: int, validated: bool) -> None:
        """Collects garbage if it is due. number: of the step, from 1."""
        if not self.frozen:
            gc.collect()
            gc.freeze()
            self.frozen = True
        elif validated or number % _EVERY == 0:
            gc.collect()
