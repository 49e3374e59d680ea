"""The progress of a run: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from acodm_cli.display.style import bar, cut, printable, width_of
from acodm_cli.writing import send_nowhere

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent

PLAIN_LINES = 20


def duration(seconds: float) -> str:
    """Returns a time as minutes:seconds, with the hours in front if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PartsDisplay:
    """Shows the progress of work in named parts, such as tokenisation by domain, but only when a part has begun.

    doing: the word before the name of a part.
    """

    def __init__(self, console: Console, doing: str) -> None:
        self.console = console
        self.doing = doing
        self.current = ""
        self.progress: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn(f"{doing} {{task.description}}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
            )
            self.progress = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> PartsDisplay:
        return self

    def __call__(self, part: str, done: int, total: int) -> None:
        part = printable(part)
        if self.progress is None:
            if part != self.current:
                self.console.print(f"{self.doing} {part}", highlight=False)
        else:
            if part != self.current:
                for task in self.progress.task_ids:
                    self.progress.remove_task(task)
                self.progress.add_task(part, total=total)
                self.progress.start()
            self.progress.update(self.progress.task_ids[-1], completed=done)
        self.current = part

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()


class TrainingDisplay:
    """Shows each step: progress, time left, tokens per second, losses and the current mixture."""

    def __init__(
        self,
        console: Console,
        domains: list[str],
        prior_K: np.ndarray,
        total_steps: int,
        first_step: int,
        episodes: int = 1,
    ) -> None:
        """total_steps: those of all episodes. first_step: how many of them are done."""
        self.console = console
        self.domains = domains
        self.prior_K = prior_K
        self.total_steps = total_steps
        self.first_step = first_step
        self.episodes = episodes
        self.recent: deque[float] = deque(maxlen=50)
        self.validation = math.nan
        self.live: Live | None = None
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            # Rich's own estimate forgets what is older than 30 seconds, and steps may take longer.
            TextColumn("eta [cyan]{task.fields[left]}"),
        )
        self.progress = Progress(*columns, console=console)
        self.task = self.progress.add_task("training", total=total_steps, completed=first_step, left="?")
        self.event: StepEvent | None = None
        self.notice = ""
        if console.is_terminal:
            self.live = Live(self, console=console, refresh_per_second=4, transient=True)
            self.live.start()

    def close(self) -> None:
        """Gives the terminal back."""
        if self.live is not None:
            self.live.stop()

    def say(self, message: str) -> None:
        """Shows a line at once, also from the handler of a signal: below the progress, which would be drawn over it."""
        if self.live is not None:
            self.notice = message
        else:
            say_at_once(message)

    def __rich__(self) -> RenderableType:
        """What the terminal shows now."""
        parts = [self.progress] if self.event is None else [self._panel(self.event)]
        return Group(*parts, Text(self.notice, style="bold yellow")) if self.notice else Group(*parts)

    def add(self, event: StepEvent) -> None:
        """Shows a finished step. Plain lines are printed only now and then."""
        self.recent.append(event.seconds)
        if event.validation_K is not None:
            self.validation = float(event.validation_K.mean())
        if self.live is not None:
            self.progress.update(self.task, completed=event.run_step, left=self._left(event))
            self.event = event
        elif self._is_due(event):
            self.console.print(self._line(event), highlight=False, soft_wrap=True)

    def _is_due(self, event: StepEvent) -> bool:
        every = max(1, self.total_steps // PLAIN_LINES)
        return event.run_step % every == 0 or event.run_step in (self.first_step + 1, self.total_steps)

    @property
    def _step_seconds(self) -> float:
        return float(np.median(self.recent))

    def _figures(self, event: StepEvent) -> str:
        figures = f"episode {event.episode}/{self.episodes}  " if self.episodes > 1 else ""
        figures += f"loss {event.train_loss:.3f}"
        if not math.isnan(self.validation):
            figures += f"  validation {self.validation:.3f}"
        figures += f"  lr {event.learning_rate:.1e}  {event.tokens / event.step / self._step_seconds:,.0f} tokens/s"
        return figures + (f"  {event.report.phase}" if event.report.phase else "")

    def _left(self, event: StepEvent) -> str:
        return duration((self.total_steps - event.run_step) * self._step_seconds)

    def _line(self, event: StepEvent) -> str:
        largest = np.argsort(-event.weights_K, kind="stable")[:3]
        mixture = " ".join(f"{self.domains[i]} {event.weights_K[i]:.0%}" for i in largest)
        return f"step {event.run_step}/{self.total_steps}  {self._figures(event)}  eta {self._left(event)}  most: {mixture}"

    def _panel(self, event: StepEvent) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        rows = max(4, self.console.height - 5)
        scale = max(float(event.weights_K.max()), float(self.prior_K.max()))
        names = min(max(map(len, self.domains)), max(12, self.console.width - 36))
        room = max(1, min(40, self.console.width - names - 15))
        shown = (
            np.argsort(-event.weights_K, kind="stable")[:rows] if len(self.domains) > rows else range(len(self.domains))
        )
        for index in shown:
            weight, prior = float(event.weights_K[index]), float(self.prior_K[index])
            change = weight - prior
            colour = "green" if change > 0.005 else "red" if change < -0.005 else "default"
            table.add_row(
                Text(cut(self.domains[index], names), no_wrap=True),
                Text(f"{weight:6.1%}", style="bold"),
                Text(f"{100 * change:+z5.1f}", style=colour),
                Text(bar(weight / scale, room), style="cyan", no_wrap=True),
            )
        return Group(self.progress, Text(self._figures(event)), table)


class _Steady(io.TextIOBase):
    """Writes to a stream, and drops what cannot be written: progress must not stop a run.

    The reader may have left (a pipe), the terminal may be gone, or the disk under a log may be full."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost = 0

    def write(self, text: str) -> int:
        """Writes text, or counts it as lost."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.lost += 1
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):
                send_nowhere(self.stream)
        return len(text)

    def flush(self) -> None:
        """Does nothing: every text is flushed at once."""

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return not self.stream.closed and self.stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return self.stream.encoding or "utf-8"


def say_at_once(message: str) -> None:
    """Writes a line past all consoles, for handlers of signals: these may run while a console is writing."""
    with suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{message}\n".encode())


def make_console(quiet: bool = False) -> Console:
    """Returns the stderr console of progress, hints and errors, which never fails. Markup is off: names of domains may
    hold brackets. Where there is no terminal, tables are as wide as they are."""
    stream: Any = _Steady(sys.stderr)
    terminal = False if quiet else None
    return Console(
        file=stream, soft_wrap=False, quiet=quiet, force_terminal=terminal, markup=False, width=width_of(stream)
    )
