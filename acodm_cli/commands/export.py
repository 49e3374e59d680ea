"""`acodm inspect --export`: a schedule in the syntax of another trainer, with a report of what that trainer will make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acodm_cli.display.style import printable
from acodm_cli.errors import UsageError
from acodm_cli.exports.catalog import exporter
from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.measures import l1
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.schedule.stages import find_stages, mean_divergence

if TYPE_CHECKING:
    from acodm_cli.commands.inspect import InspectSettings


# A change of a share below this is not seen in percents with two digits.
VISIBLE = 5e-5


def run_export(name: str, schedule: Schedule, settings: InspectSettings) -> None:
    """Write the files; print the report to stderr and the paths to stdout.

    Raises:
        UsageError: the run of the target is not known, its trainer cannot do it, or a file is in the way.
    """
    assert settings.export is not None
    assert settings.out is not None
    module = exporter(settings.export)
    target = _target(schedule, settings)
    stages = find_stages(schedule.weights_SK, target.steps, settings.stages, module.multiple(target))
    plan = Plan(schedule.domains, stages, target, printable(name))
    export = module.export(plan)
    paths = [settings.out / file for file in export.files]
    for path in paths:
        if path.exists() and not settings.force:
            raise UsageError(f"{path} exists; give another --out, or --force to overwrite it")
    try:
        for path, text in zip(paths, export.files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {settings.out}: {error.strerror}; choose another --out") from None
    console = Console(stderr=True, highlight=False, markup=False)
    _report(console, schedule, plan, module.realised(export.files, plan), module.TRAINER)
    for note in export.notes:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)
    print(*paths, sep="\n")  # noqa: T201 - the results, for scripts


def _target(schedule: Schedule, settings: InspectSettings) -> Target:
    """The target's run: as given, else the schedule's own."""
    values: dict[str, Any] = {}
    for name in ("steps", "batch", "seq_len"):
        given = getattr(settings, f"target_{name}")
        values[name] = given if given is not None else schedule.info.get(name)
    missing = [name for name, value in values.items() if type(value) is not int or not 1 <= value <= 2**40]
    if missing:
        options = " and ".join(f"--target-{name.replace('_', '-')}" for name in missing)
        raise UsageError(f"the schedule does not say what run the target is; give {options}")
    if "{domain}" not in settings.target_path:
        raise UsageError(f"--target-path {settings.target_path} has no {{domain}}; for example tokens/{{domain}}/train")
    return Target(path=settings.target_path, **values)


def _report(console: Console, schedule: Schedule, plan: Plan, realised_NK: np.ndarray, trainer: str) -> None:
    """Stages: where they begin, from 0; how far in L1 the trainer's rounding is from them, and which domain it changes most."""
    target, asked_NK = plan.target, plan.weights_NK
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=f"exported for {trainer}",
        title_justify="left",
    )
    for column in ("stage", "from step", "from sample", "rounding", "to zero", "most changed"):
        last = column == "most changed"
        table.add_column(
            column, justify="left" if last else "right", no_wrap=True, min_width=0 if last else len(column)
        )
    for number, stage in enumerate(plan.stages):
        asked_K, realised_K = asked_NK[number], realised_NK[number]
        worst = int(np.abs(realised_K - asked_K).argmax())
        change = f"{printable(plan.domains[worst])} {asked_K[worst]:.2%} -> {realised_K[worst]:.2%}"
        table.add_row(
            str(number + 1),
            f"{stage.first:,}",
            f"{stage.first * target.batch:,}",
            f"{l1(realised_K, asked_K):.4f}",
            str(int(((realised_K == 0) & (asked_K > 0)).sum()) or ""),
            Text(change if abs(realised_K[worst] - asked_K[worst]) >= VISIBLE else ""),
        )
    console.print(table)
    weights_SK = schedule.per_domain["weight"]
    console.print(
        f"the stages are {mean_divergence(weights_SK, plan.stages, asked_NK):.5f} nats from the schedule (mean KL over the run), with the "
        f"trainer's rounding {mean_divergence(weights_SK, plan.stages, realised_NK):.5f}",
        soft_wrap=True,
    )
