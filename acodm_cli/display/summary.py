"""The first and the last words of a training command."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
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
    from acodm_cli.engine.trainer import StepEvent


@dataclass
class Efficiency:
    """What a run made of its hardware. flops_per_token: of training; peak: FLOPs per second of all its devices, NaN if not known;
    memory: bytes at most, of one of them. seconds_of: wall time by part."""

    flops_per_token: float
    peak: float
    tokens_per_step: int
    memory: int = 0
    steps: int = 0
    seconds_of: Counter[str] = field(default_factory=Counter)

    def add(self, event: StepEvent, checkpoint_seconds: float) -> None:
        self.steps += 1
        self.seconds_of.update(event.seconds_of)
        self.seconds_of["checkpoints"] += checkpoint_seconds  # type: ignore[assignment]

    @property
    def tokens_per_second(self) -> float:
        """Of training; validation and checkpoints apart."""
        seconds = sum(self.seconds_of[part] for part in ("mixer", "batch", "model"))
        return self.steps * self.tokens_per_step / seconds

    @property
    def mfu(self) -> float:
        """Share of the peak that the model's arithmetic takes; NaN if the peak is not known."""
        return self.tokens_per_second * self.flops_per_token / self.peak


def print_title(console: Console, info: dict[str, Any], device: str) -> None:
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
    """mixture: whose weights these are."""
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
    if not efficiency.steps:
        return
    total = sum(efficiency.seconds_of.values())
    shares = ", ".join(f"{part} {seconds / total:.1%}" for part, seconds in efficiency.seconds_of.most_common())
    mfu = "n/a" if math.isnan(efficiency.mfu) else f"{efficiency.mfu:.1%}"
    console.print(
        f"{efficiency.tokens_per_second:,.0f} tokens/s in training, MFU {mfu}, memory {efficiency.memory / 2**30:.1f} GiB at most; "
        f"time: {shares}",
        highlight=False,
        soft_wrap=True,
    )
