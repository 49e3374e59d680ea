"""The evaluation that follows a complete run, if it was asked for, and what is said of it."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from acodm_cli.display.progress import PartsDisplay, make_console
from acodm_cli.display.summary import print_evaluation
from acodm_cli.engine.device import choose_compute
from acodm_cli.errors import Interrupted
from acodm_cli.runs.evaluation import evaluate, shown_command
from acodm_cli.runs.folder import RunFolder, results_of
from acodm_cli.runs.settings import RunSettings, StartSettings
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.writing import in_short


def evaluate_saved(settings: RunSettings, start: StartSettings, written: Schedule) -> None:
    """Evaluates the saved model, and adds the scores to the schedule. A failure is a warning: the run is complete. Nothing may
    hold the trained model any more, because another process loads it.

    written: the schedule, as it is on disk.

    Raises:
        Interrupted: a signal stopped the evaluation.
    """
    if not settings.tasks:
        return
    gc.collect()
    device = choose_compute(settings.device, settings.dtype).device
    if device.type == "cuda":
        torch.cuda.empty_cache()
    console, folder = make_console(), RunFolder(start.out)
    command = shown_command(settings, str(device))
    _say(console, f"\nevaluating the saved model: {command}", "dim")
    try:
        with (
            folder.locked(),
            folder.model_locked(settings.save_model),
            PartsDisplay(console, "evaluating") as on_progress,
        ):
            found = evaluate(settings, str(device), torch.get_num_threads(), on_progress)
            evaluated = replace(written, info=written.info | {"evaluation": found})
            evaluated.write(start.out)
    except Interrupted as error:
        raise Interrupted(
            f"{error}; the run is complete without it; repeat it with: {command}", error.exit_code - 128
        ) from None
    except Exception as error:  # whatever it is, the run has succeeded
        message = (
            f"the evaluation failed ({in_short(error)}); the run is complete without it; repeat it with: {command}"
        )
        _say(console, f"warning: {message}", "yellow")
        return
    assert settings.save_model is not None
    assert evaluated.run.evaluation is not None
    print_evaluation(console, evaluated.run.evaluation, results_of(Path(settings.save_model)))


def _say(console: Console, message: str, style: str) -> None:
    """Prints a message with a command in it, which is never broken into lines."""
    console.print(message, style=style, highlight=False, soft_wrap=True)
