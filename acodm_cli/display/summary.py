"""What a training command prints first and last."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acodm_cli.corpus.preflight import DomainUse
from acodm_cli.display.facts import validation_rows
from acodm_cli.display.inspect import View, domain_table
from acodm_cli.display.style import human_count, in_colour
from acodm_cli.schedule.schedule import Schedule

if TYPE_CHECKING:
    from acodm_cli.runs.efficiency import Efficiency


def print_title(console: Console, info: dict[str, Any], device: str) -> None:
    """Prints what a training command is about to do: model, mixer, corpus and budget. info: the metadata of the run."""
    corpus = info["corpus"]
    tokens = sum(corpus["tokens"].values())
    console.print(
        Text(info["command"], style="bold"),
        f" {info['model']} ({human_count(info['parameters'])} parameters) on {device}  "
        f"mixer {info['mixer']['name']}\n"
        f"corpus {corpus['name']}: {len(corpus['tokens'])} domains, {human_count(tokens)} tokens  "
        f"run: {info['steps']} steps of {info['batch']} x {info['seq_len']} = {human_count(info['token_budget'])} tokens",
        highlight=False,
        soft_wrap=True,
    )


def print_preflight(console: Console, uses: list[DomainUse], mixture: str) -> None:
    """Prints what a run will use of each domain. mixture: whose weights these are, for the heading."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("domain", "tokens", "validation", f"{mixture} weight", "epochs", "runs out at step"):
        least = None if name == "domain" else len(name)
        table.add_column(name, justify="right" if least else "left", no_wrap=True, min_width=least)
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
    """Prints what a run did, by domain, and its mean validation loss at the beginning and at the end."""
    console.print()
    console.print(domain_table(View("", schedule), console.width, in_colour(console)))
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


def print_efficiency(console: Console, efficiency: Efficiency) -> None:
    """Prints how well the run used its hardware; nothing if it had no step left to do."""
    if not efficiency.steps:
        return
    shares = ", ".join(f"{part} {share:.1%}" for part, share in efficiency.shares().items())
    mfu = "n/a" if math.isnan(efficiency.mfu) else f"{efficiency.mfu:.1%}"
    console.print(
        f"{efficiency.tokens_per_second:,.0f} tokens/s in training, MFU {mfu}, memory {efficiency.memory / 2**30:.1f} GiB at most; "
        f"time: {shares}",
        highlight=False,
        soft_wrap=True,
    )
