"""`acodm inspect --export`: writes a schedule in the syntax of a trainer, and reports what the trainer makes of it."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acodm_cli.commands.inspect_settings import InspectSettings
from acodm_cli.display.style import printable, width_of
from acodm_cli.errors import UsageError
from acodm_cli.exports.catalog import exporter
from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.measures import l1
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.schedule.stages import find_stages, mean_divergence
from acodm_cli.writing import atomic_file, in_short

# A smaller change of a share is not seen in percentages with two decimals.
VISIBLE = 5e-5


def run_export(name: str, schedule: Schedule, settings: InspectSettings) -> None:
    """Writes the files, and prints the report to stderr and the paths to stdout. name: what the schedule is called.

    Raises:
        UsageError: the run of the target is not known, its trainer cannot do it, or a file is in the way.
    """
    assert settings.export is not None
    assert settings.out is not None
    module = exporter(settings.export)
    target = _target(schedule, settings)
    schedule = schedule.learned
    stages = find_stages(schedule.weights_SK, target.steps, settings.stages, module.multiple(target))
    plan = Plan(schedule.domains, stages, target, printable(name), schedule.run.tokens)
    export = module.export(plan)
    if any(file.endswith((".yaml", ".yml")) for file in export.files):
        for text in (*plan.domains, target.path):
            if "${" in text:
                raise UsageError(
                    f"{text!r} would be a reference to another key in YAML that OmegaConf reads; rename it"
                )
    paths = [settings.out / file for file in export.files]
    for path in paths:
        if os.path.lexists(path) and not settings.force:
            raise UsageError(f"{path} exists; give another --out, or --force to overwrite it")
    try:
        for path, text in zip(paths, export.files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(text.encode())
    except OSError as error:
        raise UsageError(f"cannot write to {settings.out}: {in_short(error)}; choose another --out") from None
    console = Console(stderr=True, highlight=False, markup=False, width=width_of(sys.stderr))
    _report(console, schedule, plan, module.realised(export.files, plan), module.TRAINER)
    for note in export.notes:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)
    print(*paths, sep="\n")  # noqa: T201 - the results, for scripts


def _target(schedule: Schedule, settings: InspectSettings) -> Target:
    """Returns the target's run: what the user gave of it, and the rest as in the schedule's own run."""
    run = schedule.run
    values: dict[str, Any] = {
        "steps": settings.target_steps or run.steps,
        "batch": settings.target_batch or run.batch,
        "seq_len": settings.target_seq_len or run.seq_len,
    }
    missing = [name for name, value in values.items() if value is None]
    if missing:
        options = " and ".join(f"--target-{name.replace('_', '-')}" for name in missing)
        raise UsageError(f"the schedule does not say what run the target is; give {options}")
    if "{domain}" not in settings.target_path:
        raise UsageError(f"--target-path {settings.target_path} has no {{domain}}; for example tokens/{{domain}}/train")
    return Target(path=settings.target_path, ranks=settings.target_ranks, **values)


def _report(console: Console, schedule: Schedule, plan: Plan, realised_NK: np.ndarray, trainer: str) -> None:
    """Prints where each stage begins (from 0), how far in L1 the trainer's rounding is from it, and which domain the
    rounding changes most. realised_NK: the weights after rounding, N stages."""
    target, asked_NK = plan.target, plan.weights_NK
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=f"exported for {trainer}{'' if plan.target.ranks == 1 else f', {plan.target.ranks} ranks'}",
        title_justify="left",
    )
    for column in ("stage", "from step", "from sample", "rounding", "to zero", "most changed"):
        last = column == "most changed"
        table.add_column(
            column, justify="left" if last else "right", no_wrap=not last, min_width=0 if last else len(column)
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
        f"the stages are {mean_divergence(weights_SK, plan.stages, asked_NK):z.5f} nats from the schedule (mean KL over the run), with the "
        f"trainer's rounding {mean_divergence(weights_SK, plan.stages, realised_NK):z.5f}",
        soft_wrap=True,
    )
