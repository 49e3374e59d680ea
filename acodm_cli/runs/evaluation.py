"""Evaluates the saved model of a complete run with lm-evaluation-harness, whose package is lm_eval.

Before training, the harness is asked for its tasks, so that a mistake is found before hours of work. After the run, its own
command evaluates the folder of the model in a process of its own: whatever happens there costs neither the run nor its files,
the command may be repeated by hand, and what ranks have in their environment does not confuse the harness.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from acodm_cli.errors import STOP_SIGNALS, AcodmError, Interrupted, UsageError, ended_by
from acodm_cli.runs.folder import results_of
from acodm_cli.runs.settings import EvaluationSettings, RunSettings
from acodm_cli.settings import declared
from acodm_cli.writing import atomic_file, in_short

PACKAGES = ("lm_eval", "accelerate")
CPU_BATCH = 8
# Where metrics that execute what the model writes look for leave to do so.
_ALLOWS_CODE = "HF_ALLOW_CODE_EVAL"
# What launchers tell ranks. The harness would wait for the others.
_OF_RANKS = re.compile(
    r"(GROUP_|ROLE_)?(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(TORCHELASTIC|PMI|OMPI_COMM|MV2_COMM|MPI)_\w+"
)
_PROGRESS = re.compile(r"Running (\w+) requests:.*?(\d+)/(\d+) \[")
_BAR = re.compile(r"\d+%\|")
_ERROR = re.compile(r"([\w.]+\.)?\w*(Error|Exception|Exit|Interrupt|NotFound)(: |$)")
_KEPT_LINES = 200
_SECONDS_TO_END = 10.0

OnProgress = Callable[[str, int, int], None]


# Before training


def check_evaluation(settings: RunSettings) -> None:
    """Checks that the model of a run can be evaluated as it is asked for; does nothing if that is not asked for.

    Raises:
        UsageError: there will be no model, a package is not installed, or a task is unknown or would execute what the model
            writes without leave.
    """
    if settings.evaluate is None:
        for name, each in declared(EvaluationSettings).items():
            if getattr(settings, name) != each.default:
                raise UsageError(
                    f"{each.option} says how to --evaluate; give the tasks with --evaluate, or leave it out"
                )
    if not settings.tasks:
        if settings.evaluate not in (None, "none"):
            raise UsageError("--evaluate names no task; give some, for example --evaluate mmlu,piqa, or leave it out")
        return
    if settings.save_model is None:
        raise UsageError("--evaluate takes the model that is saved; say where with --save-model, or leave it out")
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UsageError(f"--evaluate needs the package {package}; pip install 'acodm[eval]'")
    folder = settings.evaluate_tasks
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"--evaluate-tasks {folder} is no folder; give one that holds the YAML files of tasks")
    if "," in str(Path(settings.save_model).absolute()):
        raise UsageError(
            f"--save-model {settings.save_model} has a comma, at which lm_eval cuts; give another, or do without --evaluate"
        )
    _check_tasks(settings, _known_tasks(folder))


def _known_tasks(folder: str | None) -> dict[str, Any]:
    """Returns the harness's own index of its tasks, groups and tags, by name. This takes seconds, and runs no task's code.

    Raises:
        UsageError: the harness does not work here.
    """
    try:
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        return dict(TaskManager(include_path=folder).task_index)
    except Exception as error:  # whatever a broken or another version of the package raises
        raise UsageError(f"lm_eval does not tell its tasks ({in_short(error)}); pip install -U 'acodm[eval]'") from None


def _check_tasks(settings: EvaluationSettings, known: dict[str, Any]) -> None:
    """Raises UsageError for the first task that is not known, or that would execute what the model writes without leave."""
    for name in settings.tasks:
        found = fnmatch.filter(known, name)
        if not found:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "lm_eval ls tasks lists what there is"
            raise UsageError(f"--evaluate {name}: no such task; {hint} (--evaluate-tasks DIR adds tasks of your own)")
        unsafe = any(each.get("unsafe_code", False) is not False for each in _definitions(found, known, set()))
        if unsafe and not settings.evaluate_unsafe:
            raise UsageError(
                f"--evaluate {name} would execute the code that the model writes on this machine; use a container, and allow it "
                "with --evaluate-unsafe, or leave the task out"
            )


def _definitions(what: Any, known: dict[str, Any], seen: set[str]) -> Iterator[dict[str, Any]]:
    """Yields the definitions of tasks, and of all that groups and tags among them stand for. what: a name, a definition, or a
    list of these. seen: the names that were met before."""
    if isinstance(what, list):
        for each in what:
            yield from _definitions(each, known, seen)
    elif isinstance(what, dict):
        yield what
        yield from _definitions([what.get("group"), what.get("task")], known, seen)
    elif isinstance(what, str) and what in known and what not in seen:
        seen.add(what)
        entry = known[what]
        yield from _definitions(sorted(entry.tags) if entry.cfg is None else entry.cfg, known, seen)


# After the run


def command_of(settings: RunSettings, device: str) -> list[str]:
    """Returns the harness's own command that evaluates the saved model. device: where."""
    assert settings.save_model is not None
    command = ["lm_eval", "--model", "hf", "--model_args", f"pretrained={Path(settings.save_model).absolute()}"]
    command += ["--tasks", ",".join(settings.tasks)]
    if settings.evaluate_tasks is not None:
        command += ["--include_path", str(Path(settings.evaluate_tasks).absolute())]
    if settings.evaluate_limit is not None:
        command += ["--limit", str(settings.evaluate_limit)]
    command += ["--device", device, "--batch_size", str(CPU_BATCH) if device == "cpu" else "auto"]
    return command + ["--confirm_run_unsafe_code"] * settings.evaluate_unsafe


def shown_command(settings: RunSettings, device: str) -> str:
    """Returns the command as one types it into a shell."""
    allowed = f"{_ALLOWS_CODE}=1 " if settings.evaluate_unsafe else ""
    return allowed + shlex.join(command_of(settings, device))


def evaluate(settings: RunSettings, device: str, threads: int, on_progress: OnProgress) -> dict[str, Any]:
    """Evaluates the saved model, and writes all results beside it. Returns what the schedule says of them.

    device: where, as PyTorch names it. threads: those to compute with on a CPU. on_progress: told what is done of which kind of
    requests.

    Raises:
        AcodmError: the harness failed, or the results are not what was expected.
        OSError: the results cannot be written.
        Interrupted: a signal came; the evaluation was stopped.
    """
    assert settings.save_model is not None
    with tempfile.TemporaryDirectory(prefix="acodm-") as folder:
        # -P: a folder that happens to be named as a package is not imported.
        command = [sys.executable, "-P", "-m", *command_of(settings, device), "--output_path", f"{folder}/results.json"]
        _run(command, _environment(settings.evaluate_unsafe, threads), on_progress)
        written = list(Path(folder).glob("results*.json"))
        if not written:
            raise AcodmError("lm_eval ended without results")
        content = written[0].read_bytes()
    with atomic_file(results_of(Path(settings.save_model))) as file:
        file.write(content)
    return summary(json.loads(content))


def _environment(unsafe: bool, threads: int) -> dict[str, str]:
    """Returns the environment of the harness: of a single process, which may execute generated code only if that is allowed."""
    left = {name: value for name, value in os.environ.items() if not _OF_RANKS.fullmatch(name) and name != _ALLOWS_CODE}
    own = {"LMEVAL_LOG_LEVEL": "WARNING", "OMP_NUM_THREADS": str(threads)}
    return left | own | ({_ALLOWS_CODE: "1"} if unsafe else {})


def _run(command: list[str], environment: dict[str, str], on_progress: OnProgress) -> None:
    """Runs the harness to its end. What it prints is not shown.

    Raises:
        AcodmError: it failed. Interrupted: a signal came.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # which takes the carriage returns of progress bars for ends of lines
        encoding="utf-8",
        errors="replace",
    )
    said: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        with _stopped_by_signals():
            assert process.stdout is not None
            for line in process.stdout:
                if progress := _PROGRESS.search(line):
                    on_progress(f"{progress[1]} requests", int(progress[2]), int(progress[3]))
                elif line.strip() and not _BAR.search(line):
                    said.append(line.rstrip())
            code = process.wait()
    finally:
        _end(process)
    if code < 0:
        raise AcodmError(f"lm_eval {ended_by(code)}")
    if code:
        raise AcodmError(_reason(list(said)) or f"lm_eval exited with {code}")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turns the signals that ask a run to stop into an exception while its block runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("the evaluation was stopped", number)

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the harness if it is still there."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _reason(said: list[str]) -> str:
    """Returns the line that says why a Python program failed: the last one with the name of an error, else the last."""
    errors = [line for line in said if _ERROR.match(line)]
    return (errors or said or [""])[-1].strip()


# The results


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Returns what a schedule says of the harness's results: by task and metric, value and standard error. Of a group that has
    a score itself, the tasks below it are left out. Nothing in it is of this machine.

    Raises:
        AcodmError: there is no score.
    """
    scores = {task: _scores(metrics) for task, metrics in results["results"].items()}
    scores = {task: metrics for task, metrics in scores.items() if metrics}
    below = {task for group, tasks in results.get("group_subtasks", {}).items() if group in scores for task in tasks}
    shown = {task: metrics for task, metrics in scores.items() if task not in below}
    if not shown:
        raise AcodmError("lm_eval gave no score")
    shots, limit = results.get("n-shot", {}), results.get("config", {}).get("limit")
    return {
        "harness": f"lm_eval {results.get('lm_eval_version', '?')}",
        "limit": None if limit is None else int(limit),
        "n_shot": {task: shots[task] for task in shown if task in shots},
        "results": shown,
    }


def _scores(metrics: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Returns the scores of a task by metric. In the harness's results, a metric is "acc,none": its name and the filter that the
    answers went through; "acc_stderr,none" is its standard error."""
    scores = {}
    for key, value in metrics.items():
        name, comma, how = key.partition(",")
        if comma and not name.endswith("_stderr") and _is_finite(value):
            stderr = metrics.get(f"{name}_stderr,{how}")
            scores[name if how == "none" else key] = {"value": value, "stderr": stderr if _is_finite(stderr) else None}
    return scores


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
