"""`acodm inspect`: show and compare schedules. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from acodm_cli.display.inspect import as_json, print_schedules
from acodm_cli.schedule.schedule import Schedule


def run_inspect(paths: list[Path], as_json_output: bool) -> None:
    schedules = [(path, Schedule.load(path)) for path in paths]
    if as_json_output:
        values = [as_json(path, schedule) for path, schedule in schedules]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=1))  # noqa: T201
    else:
        print_schedules(schedules, Console(highlight=False))
