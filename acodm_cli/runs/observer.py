"""The interface of what follows a run while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent


class Observer(Protocol):
    """Follows a run. The record, the progress display, the efficiency and the trackers are observers. If there are many
    ranks, only the first one has them.

    for event in run.steps():
        for observer in observers:
            observer.add(event)
    """

    def add(self, event: StepEvent) -> None:
        """Takes note of a finished step."""
        ...

    def close(self) -> None:
        """Closes what is open. The run has ended, or stops here, and no more steps will come."""
        ...
