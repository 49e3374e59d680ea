"""`acodm apply`: train a target model with a learned policy or schedule, or online without one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from acodm_cli.commands.evaluate import evaluate_saved
from acodm_cli.commands.train import carry_out
from acodm_cli.display.progress import make_console
from acodm_cli.errors import ScheduleError
from acodm_cli.runs.build import with_mode
from acodm_cli.runs.settings import RunSettings, StartSettings
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.settings import declared


def run_apply(settings: RunSettings, start: StartSettings, given: set[str]) -> None:
    """Carries the run out, and prints what to do next. given: the names of the settings that the user gave; some of the
    others are taken from the schedule."""
    schedule = Schedule.load(settings.schedule) if settings.schedule else None
    if not start.resume:
        settings = _completed(settings, given, schedule)
    elif settings.mode == "policy" and schedule is not None and schedule.policy is None:
        raise ScheduleError(f"{settings.schedule} holds no policy any more; restore it, or start over with --force")
    written = carry_out(settings, start, schedule)
    if written is None:
        return
    evaluate_saved(settings, start, written)
    look = shlex.join(filter(None, ["acodm", "inspect", settings.schedule, str(start.out)]))
    make_console().print(f"\nmodel:       {settings.save_model}\nlook at it:  {look}", highlight=False, soft_wrap=True)
    print(start.out)  # noqa: T201 - the result, for scripts


def _completed(settings: RunSettings, given: set[str], schedule: Schedule | None) -> RunSettings:
    """Decides the mode, and takes what the user left open from the schedule."""
    settings = with_mode(settings, schedule)
    if schedule is None:
        return settings
    run = schedule.run
    seed = run.seeds[0] if len(run.seeds) == 1 else None
    recorded: dict[str, Any] = {"steps": run.steps, "batch": run.batch, "seq_len": run.seq_len, "seed": seed}
    left_open = {
        name: value
        for name, value in recorded.items()
        if name not in given and value is not None and value < 2**31 and not declared(RunSettings)[name].refusal(value)
    }
    return replace(settings, **left_open)
