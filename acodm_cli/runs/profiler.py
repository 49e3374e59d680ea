"""Profiles some steps of a run."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile

from acodm_cli.writing import atomic_file, why_not_written

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent
    from acodm_cli.runs.run import Run


class StepProfiler:
    """An observer that has torch.profiler watch some steps, and writes its trace beside the schedule, for chrome://tracing or Perfetto.

    A step begins when the observers have seen the one before, so checkpoints are in the step after them.
    """

    def __init__(self, run: Run, steps: tuple[int, int], out: Path, say: Callable[[str], None]) -> None:
        """steps: the first and the last one, of all episodes. say: tells the user where the trace is."""
        (self.first, self.last), self.say = steps, say
        self.path = out.parent / f"{out.stem}.trace.json.gz"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (run.compute.device.type == "cuda")
        self.profiler = profile(activities=activities)
        self.running = False
        self._start_if_due(run.trainer.run_step)

    def _start_if_due(self, step: int) -> None:
        if step + 1 == self.first:
            self.profiler.start()
            self.running = True

    def add(self, event: StepEvent) -> None:
        """Starts before the first step, and writes the trace after the last one."""
        if self.running and event.run_step == self.last:
            self.close()
        self._start_if_due(event.run_step)

    def close(self) -> None:
        """Writes the trace of what has been watched, if the run ends within the steps."""
        if not self.running:
            return
        self.running = False
        self.profiler.stop()
        try:
            with tempfile.TemporaryDirectory() as folder:
                plain = Path(folder, "trace.json")
                self.profiler.export_chrome_trace(str(plain))
                with (
                    plain.open("rb") as source,
                    atomic_file(self.path, durable=False) as file,
                    gzip.open(file, "wb") as packed,
                ):
                    shutil.copyfileobj(source, packed)
        except OSError as error:
            self.say(f"the trace was not written: {why_not_written(error, self.path)}")
        else:
            self.say(f"trace of steps {self.first} to {self.last}: {self.path} (open it in ui.perfetto.dev)")
