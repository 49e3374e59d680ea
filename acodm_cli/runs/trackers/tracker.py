"""What all trackers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from acodm_cli.errors import AcodmError
from acodm_cli.runs.trackers.numbers import numbers_of
from acodm_cli.writing import in_short

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of the run that it follows.

    out: the path of the run's record, beside which the tracker may write. info: what the record says about the run, as
    JSON values. domains: the names of the K domains, in order. tokens_per_step: the tokens of the global batch. step:
    the number of steps that are already done. resumed: whether the run continues from there, or begins. warn: told what
    the user should know.
    """

    out: Path
    info: dict[str, Any]
    domains: list[str]
    tokens_per_step: int
    step: int
    resumed: bool
    warn: Callable[[str], None]


class Tracker(ABC):
    """An observer that passes on the numbers of every step.

    package: the module that it needs, None if it needs none. Subclasses open their destination in `__init__`: the
    earlier one if the run is resumed, where what came after `tracked.step` is to be discarded, else a new one.
    """

    package: ClassVar[str | None] = None

    def __init__(self, tracked: Tracked) -> None:
        self.tracked = tracked
        self.working = True

    @classmethod
    def place(cls, out: Path) -> Path | None:
        """Returns the file or folder that it writes beside the run's record, None if it writes elsewhere."""
        return None

    @classmethod
    def owns(cls, place: Path) -> bool:
        """Returns whether what is at its place looks like its own, and may be written to. What is not is never touched."""
        return True

    def add(self, event: StepEvent) -> None:
        """Passes on the numbers of a finished step. A tracker that fails is not used again, and never stops the run."""
        if self.working:
            numbers = numbers_of(event, self.tracked.domains, self.tracked.tokens_per_step)
            self._guarded(f"at step {event.run_step}", lambda: self.log(event.run_step, numbers))

    def close(self) -> None:
        """Ends tracking. Nothing that goes wrong here stops the run either."""
        self._guarded("at the end", self.end)

    def _guarded(self, when: str, work: Callable[[], None]) -> None:
        try:
            work()
        except AcodmError:  # A signal that stops the run.
            raise
        except Exception as error:  # Whatever a full disk, a network or a tracker's own package raises.
            if self.working:
                name = type(self).__name__
                self.tracked.warn(f"the tracker {name} failed {when} and is given up: {in_short(error)}")
            self.working = False

    @abstractmethod
    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Writes the numbers of one step. step: its number in the run, from 1. numbers: by name, as `numbers_of` returns them."""

    @abstractmethod
    def end(self) -> None:
        """Flushes and closes the destination."""
