"""`acodm apply`: train a target model with a learned policy or schedule, or online without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from acodm_cli.commands.files import RunFiles
from acodm_cli.commands.run import carry_out
from acodm_cli.config import RunSettings
from acodm_cli.display.progress import make_console
from acodm_cli.errors import ScheduleError, UsageError
from acodm_cli.schedule.schedule import Schedule


def run_apply(settings: RunSettings, explicit: set[str], out: Path, resuming: bool, force: bool, dry: bool) -> None:
    """explicit: settings that the user gave; the others follow the schedule."""
    schedule = Schedule.load(settings.schedule) if settings.schedule else None
    if not resuming:
        settings = _complete(settings, explicit, schedule)
    elif settings.mode == "policy" and schedule is not None and schedule.policy is None:
        raise ScheduleError(f"{settings.schedule} holds no policy any more; restore it, or start over with --force")
    if not carry_out(settings, RunFiles(out), schedule, resuming, force, dry):
        return
    look = f"acodm inspect {settings.schedule or ''} {out}".replace("  ", " ")
    make_console().print(f"\nmodel:       {settings.save_model}\nlook at it:  {look}", highlight=False, soft_wrap=True)
    print(out)  # noqa: T201 - the result, for scripts


def _complete(settings: RunSettings, explicit: set[str], schedule: Schedule | None) -> RunSettings:
    """Decide the mode, and take what the user left open from the schedule."""
    if schedule is None:
        if settings.mode not in ("auto", "online"):
            raise UsageError(f"--mode {settings.mode} needs --schedule; without one, --mode online learns from scratch")
        return replace(settings, mode="online")
    mode = settings.mode
    if mode == "auto":
        mode = "policy" if schedule.policy is not None else "replay"
    elif mode == "policy" and schedule.policy is None:
        raise ScheduleError(f"{settings.schedule} holds no policy; use --mode replay")
    recorded: dict[str, Any] = {}
    for name in ("steps", "seq_len", "batch", "seed"):
        value = schedule.info.get(name)
        if name not in explicit and type(value) is int and 0 <= value < 2**31 and (value > 0 or name == "seed"):
            recorded[name] = value
    return replace(settings, mode=mode, **recorded)
