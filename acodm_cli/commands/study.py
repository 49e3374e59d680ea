"""`acodm proxy-train --seeds`: trains the runs of a study as processes of their own, and collects what they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from rich.console import Console

from acodm_cli.commands.launch import LAUNCHER, is_a_rank
from acodm_cli.commands.proxy_train import say_what_next
from acodm_cli.display.evidence import evidence_lines, needed_lines
from acodm_cli.display.progress import make_console, say_at_once
from acodm_cli.display.study import StudyDisplay
from acodm_cli.errors import STOP_SIGNALS, AcodmError, Interrupted, UsageError, ended_by
from acodm_cli.limits import cores_of_this_job
from acodm_cli.runs.settings import RunSettings, StartSettings, StudySettings
from acodm_cli.runs.study import SingleRun, Study, shown
from acodm_cli.schedule.columns import TARGETS
from acodm_cli.schedule.evidence import COLUMNS, objective_name, validations
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.writing import locked_file

POLL_SECONDS = 0.2
# The end of a log that is searched for the last step, and for why a run failed.
TAIL_BYTES = 1 << 14


def run_study(settings: RunSettings, start: StartSettings, asked: StudySettings) -> None:
    """Trains what is not finished yet, writes the schedule of the study, and says what it is worth.

    Raises:
        UsageError: the study cannot be as it is asked for.
        AcodmError: a run failed; the others are kept.
        Interrupted: a signal came. The runs have saved themselves.
    """
    _check(settings)
    study, console = Study(settings, start, asked), make_console()
    if asked.print_commands:
        study.begin(start.force)
        for run in study.runs:
            print(shown(run.arguments(start)))  # noqa: T201 - the result, for scripts
        return
    with _alone(study):
        study.begin(start.force)
        train(study, start, console)
        written = study.collect()
    evidence = written.run.evidence
    assert evidence is not None
    console.print()
    for line in (*evidence_lines(evidence), *needed_lines(evidence)):
        console.print(line, highlight=False, soft_wrap=True)
    if evidence.recommended != evidence.mixer:
        console.print(f"the learned schedule: {study.folder / 'learned.parquet'}", highlight=False, soft_wrap=True)
    say_what_next(settings, start, console)


def _check(settings: RunSettings) -> None:
    if is_a_rank():
        raise UsageError(
            "--seeds starts runs, and this is a rank of one (WORLD_SIZE is set); start it outside, with --nproc"
        )
    if settings.save_model or settings.tasks:
        raise UsageError("a study keeps no models; leave --save-model and --evaluate out, and apply the schedule")


@contextmanager
def _alone(study: Study) -> Iterator[None]:
    """Keeps other processes from doing the same study. Raises: UsageError if one is doing it, or the place cannot be written."""
    path = study.folder.parent / f".{study.folder.name}.lock"
    try:
        with locked_file(path, wait=False) as held:
            if held is False:
                raise UsageError(f"another acodm is at this study of {study.out}; wait for it, or give another --out")
            yield
    except OSError as error:
        if error.filename != str(path):
            raise
        raise UsageError(f"cannot write in {path.parent}: {error.strerror}; choose another --out") from None


@dataclass(frozen=True)
class _Child:
    run: SingleRun
    process: subprocess.Popen[bytes]

    def step(self) -> int:
        """The last step that it has reported."""
        found = re.findall(rb"^step (\d+)/\d+ ", _tail(self.run), re.MULTILINE)
        return int(found[-1]) if found else 0


def train(study: Study, start: StartSettings, console: Console) -> None:
    """Trains the runs that are not finished, some at a time. After one that fails, no further ones are started.

    Raises:
        AcodmError: a run failed.
        Interrupted: a signal came, which was passed on, and all runs have ended.
    """
    waiting = [run for run in study.runs if not run.out.exists()]
    jobs = max(1, min(study.asked.jobs, len(waiting)))
    if jobs > 1 and start.threads is None:
        start = replace(start, threads=max(1, cores_of_this_job() // (jobs * (start.nproc or 1))))
    lengths = {run.name: run.settings.all_steps for run in study.runs}
    done_steps = sum(lengths.values()) - sum(lengths[run.name] for run in waiting)
    display = StudyDisplay(console, len(study.runs), len(study.runs) - len(waiting), sum(lengths.values()), done_steps)
    display.say(
        f"study of {len(study.runs)} runs in {study.folder}: {len(study.runs) - len(waiting)} finished, {len(waiting)} to train"
        + (f", {jobs} at a time" if jobs > 1 else "")
    )
    children: list[_Child] = []
    failed: list[tuple[SingleRun, int]] = []
    with _passed_on(children) as received, display:
        while children or (waiting and not failed and not received):
            while waiting and len(children) < jobs and not failed and not received:
                children.append(_started(waiting.pop(0), start, display))
            time.sleep(POLL_SECONDS)
            display.update({child.run.name: child.step() for child in children})
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                code = child.process.returncode
                if code == 0:
                    display.ended(child.run.name, lengths[child.run.name], _result(child.run, study))
                elif not received:
                    failed.append((child.run, code))
                    display.say(f"{child.run.name} failed: {_reason(child.run, code)}", "yellow")
    if received and not all(run.out.exists() for run in study.runs):
        raise Interrupted(
            f"stopped; finished runs and the saved state of others are in {study.folder}; the same command continues"
            + (", without --force" if start.force else ""),
            received[0],
        )
    if failed:
        run, code = failed[0]
        error = AcodmError(
            f"{run.name} failed: {_reason(run, code)} (see {run.log}); what is finished is kept, and the same command continues"
        )
        error.exit_code = code if code > 0 else 128 - code
        raise error


@contextmanager
def _passed_on(children: list[_Child]) -> Iterator[list[int]]:
    """Passes signals on to the children while its block runs, and gives the list of those that came. Whatever ends the block, no
    child is left."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if not received:
            say_at_once(f"{signal.Signals(number).name}: the runs save themselves and stop; again to stop at once")
        received.append(number)
        for child in list(children):
            if child.process.poll() is None:
                child.process.send_signal(number)

    previous: dict[int, Callable[..., object] | int | None] = {n: signal.signal(n, forward) for n in STOP_SIGNALS}
    try:
        yield received
    finally:
        for child in children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _started(run: SingleRun, start: StartSettings, display: StudyDisplay) -> _Child:
    """Starts a run, or continues it if it had begun."""
    began = run.folder.settings_file.is_file() or bool(run.folder.checkpoints())
    command = [sys.executable, "-m", "acodm_cli", *run.arguments(start, began)]
    environment = {**os.environ, LAUNCHER: str(os.getpid())}
    if start.threads is not None:
        environment["OMP_NUM_THREADS"] = str(start.threads)
    with run.log.open("ab") as log:
        # A terminal's Ctrl-C reaches it once, through us; and it stops if we are killed.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    child = _Child(run, process)
    display.started(run.name, run.settings.all_steps, child.step() if began else None)
    return child


def _result(run: SingleRun, study: Study) -> str:
    schedule = Schedule.read(run.out, (*COLUMNS, TARGETS))
    return f"{objective_name(schedule)} {validations(schedule, study.objective_weights)[1][-1]:.4g}"


def _reason(run: SingleRun, code: int) -> str:
    """Returns the last error in the log of a run."""
    if code < 0:
        return ended_by(code)
    lines = [line.strip() for line in _tail(run).decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1]


def _tail(run: SingleRun) -> bytes:
    with run.log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return file.read()
