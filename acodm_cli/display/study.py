"""The progress of a study: one view of all its runs in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from acodm_cli.display.progress import duration


class StudyDisplay:
    """Shows how many steps of all runs are done, and those of each run that is going on.

    total_runs, done_runs: of the study. total_steps, done_steps: of all of them together.
    """

    def __init__(self, console: Console, total_runs: int, done_runs: int, total_steps: int, done_steps: int) -> None:
        self.console = console
        self.total_runs, self.done_runs = total_runs, done_runs
        self.total_steps, self.finished_steps, self.first_step = total_steps, done_steps, done_steps
        self.began = time.monotonic()
        self.running: dict[str, int] = {}
        self.tasks: dict[str, TaskID] = {}
        self.progress: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self.progress = Progress(*columns, console=console, transient=True)
            self.whole = self.progress.add_task("study", total=total_steps, completed=done_steps, left="")

    def __enter__(self) -> StudyDisplay:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def started(self, name: str, steps: int, done: int | None) -> None:
        """Shows that a run has begun. done: its steps from before, if it continues."""
        self.first_step += done or 0
        if self.progress is not None:
            self.tasks[name] = self.progress.add_task(name, total=steps, left="")
        else:
            self.say(f"{name}: {'begins' if done is None else 'continues'}")

    def update(self, running: Mapping[str, int]) -> None:
        """Shows the steps of the runs that are going on."""
        self.running = dict(running)
        if self.progress is None:
            return
        for name, step in running.items():
            self.progress.update(self.tasks[name], completed=step)
        self.progress.update(self.whole, completed=self._done, left=self._left)

    def ended(self, name: str, steps: int, said: str) -> None:
        """Shows that a run is finished. said: with which result."""
        self.running.pop(name, None)
        self.finished_steps += steps
        self.done_runs += 1
        if self.progress is not None:
            self.progress.remove_task(self.tasks.pop(name))
        left = f", {self._left}" if self.done_runs < self.total_runs else ""
        self.say(f"{name}: {said} ({self.done_runs} of {self.total_runs} runs done{left})")

    def say(self, message: str, style: str | None = None) -> None:
        """Prints a line."""
        self.console.print(message, style=style, highlight=False, soft_wrap=not self.console.is_terminal)

    @property
    def _done(self) -> int:
        return self.finished_steps + sum(self.running.values())

    @property
    def _left(self) -> str:
        done = self._done - self.first_step
        if done <= 0:
            return "eta ?"
        return f"eta {duration((self.total_steps - self._done) * (time.monotonic() - self.began) / done)}"
