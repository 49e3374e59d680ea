"""The first and the last words of a training command."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acodm_cli.corpus.preflight import DomainUse
from acodm_cli.display.inspect import domain_table, human_count, in_colour, validation_rows
from acodm_cli.schedule.schedule import Schedule


def print_title(console: Console, info: dict[str, Any], device: str) -> None:
    corpus = info["corpus"]
    tokens = sum(corpus["tokens"].values())
    console.print(
        f"[bold]{info['command']}[/]  {info['model']} ({human_count(info['parameters'])} parameters) on {device}  "
        f"mixer {info['mixer']['name']}\n"
        f"corpus {corpus['name']}: {len(corpus['tokens'])} domains, {human_count(tokens)} tokens  "
        f"run: {info['steps']} steps of {info['batch']} x {info['seq_len']} = {human_count(info['token_budget'])} tokens",
        highlight=False,
        soft_wrap=True,
    )


def print_preflight(console: Console, uses: list[DomainUse], mixture: str) -> None:
    """mixture: whose weights these are."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("domain", "tokens", "validation", f"{mixture} weight", "epochs", "exhausted at step"):
        table.add_column(name, justify="left" if name == "domain" else "right", no_wrap=True)
    for use in uses:
        table.add_row(
            Text(use.name),
            human_count(use.tokens),
            human_count(use.validation_tokens),
            f"{use.weight:.1%}",
            f"{use.epochs:.2f}",
            f"{use.exhausted_at:,}" if use.exhausted_at else "",
        )
    console.print(table)


def print_summary(console: Console, schedule: Schedule) -> None:
    console.print()
    console.print(domain_table(schedule, console.width, in_colour(console)))
    rows = validation_rows(schedule)
    if len(rows):
        losses_RK = schedule.per_domain["validation_loss"][rows].astype(np.float64)
        first, last = losses_RK[0].mean(), losses_RK[-1].mean()
        console.print(
            f"\nvalidation loss, mean over domains: {first:.4f} at step {schedule.step_S[rows[0]]} -> {last:.4f} at step "
            f"{schedule.step_S[rows[-1]]}",
            highlight=False,
            soft_wrap=True,
        )
