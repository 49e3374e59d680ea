"""The first and the last words of a training command."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

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
