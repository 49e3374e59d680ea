"""Schedules in the terminal: header, weights over time, table per domain; for people and as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acodm_cli.schedule.schedule import Schedule

Array = NDArray[np.float64]

# Readable on light and dark backgrounds; neighbours differ in hue.
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#997700", "#7766cc",
    "#bbcc33", "#cc6688", "#0077bb", "#dd7700", "#009988", "#aa4499", "#88aa00", "#bb5555", "#5588dd", "#c0a060",
    "#60a080", "#9070b0",
)  # fmt: skip
KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SPARKS = "▁▂▃▄▅▆▇█"
PLOT_HEIGHT = 14
NARROWEST_PLOT = 36


def in_colour(console: Console) -> bool:
    """Whether areas can be told apart by colour: not in a pipe, nor with NO_COLOR."""
    return console.color_system is not None and not console.no_color


def human_count(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def resample(values_SX: Array, columns: int) -> Array:
    """Means over `columns` equal spans of the run; a run shorter than that is stretched. [columns, …]"""
    steps = len(values_SX)
    edges = np.linspace(0, steps, columns + 1)
    starts = np.minimum(edges[:-1].astype(int), steps - 1)
    ends = np.maximum(np.ceil(edges[1:] - 1e-9).astype(int), starts + 1)
    return np.stack([values_SX[start:end].mean(axis=0) for start, end in zip(starts, ends, strict=True)])


def sparkline(values_S: Array, width: int) -> str:
    """Scaled to its own range; a constant is a flat line."""
    points = resample(values_S, width)
    span = points.max() - points.min()
    levels = np.full(width, 3) if span < 1e-6 else ((points - points.min()) / span * 7).round().astype(int)
    return "".join(_SPARKS[level] for level in levels)


def validation_rows(schedule: Schedule) -> NDArray[np.int64]:
    """Indices of the steps that have validation losses."""
    return np.flatnonzero(np.isfinite(schedule.per_domain["validation_loss"]).all(axis=1))


def domain_key(index: int) -> str:
    return KEYS[index % len(KEYS)]


def header(schedule: Schedule, path: Path) -> Text:
    info = schedule.info
    corpus, tokenizer, mixer = (_mapping(info.get(name)) for name in ("corpus", "tokenizer", "mixer"))
    entropy_S = schedule.per_step["entropy"]
    lines = [
        ("schedule", f"{path}  (format 1, acodm {info.get('acodm_version', '?')})"),
        ("run", f"{info.get('command', '?')}  mixer {mixer.get('name', '?')}  seed {info.get('seed', '?')}  "
                f"{'with' if schedule.policy else 'no'} policy"),
        ("model", f"{info.get('model', '?')}  {human_count(_number(info.get('parameters')))} parameters"),
        ("corpus", f"{corpus.get('name', '?')}  {len(schedule.domains)} domains  tokenizer {tokenizer.get('name', '?')} "
                   f"({tokenizer.get('vocab_size', '?')})"),
        ("budget", f"{len(schedule):,} steps x {info.get('batch', '?')} x {info.get('seq_len', '?')}  "
                   f"{human_count(float(schedule.tokens_S[-1]))} tokens"),
        ("entropy", f"{entropy_S[0]:.3f} -> {entropy_S[-1]:.3f} nats  effective domains {math.exp(entropy_S[0]):.1f} -> "
                    f"{math.exp(entropy_S[-1]):.1f} of {len(schedule.domains)}"),
    ]  # fmt: skip
    energies = _energy_line(schedule)
    if energies:
        lines.append(("energy", energies))
    return Text("\n").join(Text.assemble((f"{label:<9}", "bold"), _printable(value)) for label, value in lines)


def _printable(text: str) -> str:
    """Schedules come from strangers: no control characters reach the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _energy_line(schedule: Schedule) -> str:
    """Self magnitude and interaction energy, medians over the first and last tenth of the run."""
    self_S, interaction_S = schedule.per_step["self_energy"], schedule.per_step["interaction_energy"]
    if not np.isfinite(self_S).any():
        return ""
    tenth = max(1, len(schedule) // 10)
    pairs = [
        f"{name} {np.nanmedian(values[:tenth]):.3g} -> {np.nanmedian(values[-tenth:]):.3g}"
        for name, values in (("self", self_S), ("interaction", interaction_S))
    ]
    return "  ".join(pairs)


def weights_plot(schedule: Schedule, width: int, colour: bool, title: str = "weights over time") -> Text:
    """Stacked areas of the weights over the run, first domain on top.

    In colour each cell shows two half rows; without, each area is filled with its domain's letter.
    """
    columns = max(width - 6, 10)
    weights_CK = resample(schedule.weights_SK, columns)
    rows = PLOT_HEIGHT * (2 if colour else 1)
    # The domain at the middle of each row of each column.
    edges_CK = weights_CK.cumsum(axis=1) / weights_CK.sum(axis=1, keepdims=True)
    middles_R = (np.arange(rows) + 0.5) / rows
    domain_RC = (middles_R[:, None, None] >= edges_CK[None]).sum(axis=2).clip(max=len(schedule.domains) - 1)
    plot = Text(title.center(width).rstrip() + "\n", style="bold") if title else Text()
    for row in range(PLOT_HEIGHT):
        label = {0: "100%", PLOT_HEIGHT // 2: " 50%", PLOT_HEIGHT - 1: "  0%"}.get(row, "    ")
        plot.append(f"{label} ", style="not bold")
        for column in range(columns):
            if colour:
                upper, lower = domain_RC[2 * row, column], domain_RC[2 * row + 1, column]
                plot.append("▀", style=f"{_colour(upper)} on {_colour(lower)}")
            else:
                plot.append(domain_key(domain_RC[row, column]), style="not bold")
        plot.append("\n")
    first, last = f"step {schedule.step_S[0]}", f"{schedule.step_S[-1]}"
    plot.append("     " + first + last.rjust(columns - len(first)), style="not bold")
    return plot


def _colour(domain: int) -> str:
    return PALETTE[domain % len(PALETTE)]


def domain_table(schedule: Schedule, width: int, colour: bool) -> Table:
    """Per domain: start -> end, mean, min, max, shape over time, samples, epochs, first and last validation loss.
    In a narrow terminal, without min, max and samples."""
    wide = width >= 104
    weights_SK = schedule.weights_SK
    rows = validation_rows(schedule)
    epochs_K = _epochs(schedule)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("domain", no_wrap=True, overflow="ellipsis", min_width=8)
    figures = ("start", "end", "mean", "min", "max") if wide else ("start", "end", "mean")
    samples = wide or epochs_K is None
    columns = (
        *figures,
        "over time",
        *(["samples"] if samples else []),
        *(["epochs"] if epochs_K is not None else []),
        *(["validation loss"] if len(rows) else []),
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "over time" else "right", no_wrap=True)
    for index, domain in enumerate(schedule.domains):
        values = weights_SK[:, index]
        cells = [f"{values[0]:.1%}", f"{values[-1]:.1%}", f"{values.mean():.1%}"]
        if wide:
            cells += [f"{values.min():.1%}", f"{values.max():.1%}"]
        cells.append(sparkline(values, 16 if wide else 9))
        if samples:
            cells.append(human_count(float(schedule.per_domain["samples"][:, index].sum())))
        if epochs_K is not None:
            cells.append(f"{epochs_K[index]:.2f}")
        if len(rows):
            losses = schedule.per_domain["validation_loss"][rows, index]
            cells.append(f"{losses[0]:.3f} -> {losses[-1]:.3f}" if wide else f"{losses[0]:.2f}→{losses[-1]:.2f}")
        key = Text("██" if colour else domain_key(index), style=_colour(index) if colour else "")
        table.add_row(key, Text(_printable(domain)), *cells)
    return table


def _epochs(schedule: Schedule) -> Array | None:
    """How often each domain's training sequences were seen, if the file knows how many there are."""
    sequences = _mapping(_mapping(schedule.info.get("corpus")).get("sequences"))
    sizes = [_number(sequences.get(name)) for name in schedule.domains]
    if not all(size > 0 for size in sizes):
        return None
    return schedule.per_domain["samples"].sum(axis=0) / np.array(sizes)


def print_schedules(schedules: list[tuple[Path, Schedule]], console: Console) -> None:
    colour = in_colour(console)
    if len(schedules) == 1:
        path, schedule = schedules[0]
        console.print(header(schedule, path))
        console.print()
        console.print(weights_plot(schedule, min(console.width, 120), colour))
        console.print(domain_table(schedule, console.width, colour))
        return
    for path, schedule in schedules:
        console.print(header(schedule, path))
        console.print()
    side_by_side = max(1, min(len(schedules), console.width // NARROWEST_PLOT))
    width = min(console.width // side_by_side - 2, 120)
    plots = [weights_plot(schedule, width, colour, path.name) for path, schedule in schedules]
    console.print(Columns(plots, padding=(0, 1)))
    console.print(comparison_table(schedules, colour))
    console.print(distance_lines(schedules))


def comparison_table(schedules: list[tuple[Path, Schedule]], colour: bool) -> Table:
    """Mean and final weight of every domain in every file; differences are to the first file."""
    names = list(dict.fromkeys(name for _, schedule in schedules for name in schedule.domains))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("")
    table.add_column("domain", no_wrap=True)
    for number, (path, _) in enumerate(schedules):
        table.add_column(f"{_printable(path.stem)}\nmean", justify="right", no_wrap=True)
        table.add_column("\nend", justify="right", no_wrap=True)
        if number:
            table.add_column("\nΔ mean", justify="right", no_wrap=True)
    for index, name in enumerate(names):
        key = Text("██" if colour else domain_key(index), style=_colour(index) if colour else "")
        cells: list[str] = []
        first_mean = None
        for number, (_, schedule) in enumerate(schedules):
            if name not in schedule.domains:
                cells += ["-", "-"] + (["-"] if number else [])
                continue
            values = schedule.weights_SK[:, schedule.domains.index(name)]
            cells += [f"{values.mean():.1%}", f"{values[-1]:.1%}"]
            if number:
                cells.append("-" if first_mean is None else f"{100 * (values.mean() - first_mean):+.1f}")
            else:
                first_mean = values.mean()
        table.add_row(key, Text(_printable(name)), *cells)
    return table


def distance_lines(schedules: list[tuple[Path, Schedule]]) -> Text:
    """L1 distance of each file's weights to the first file's, over progress."""
    (first_path, first), *others = schedules
    lines = []
    for path, other in others:
        if set(other.domains) != set(first.domains):
            lines.append(f"L1 {first_path.name} - {path.name}: the domains differ")
            continue
        order = [other.domains.index(name) for name in first.domains]
        points = 16
        gap = np.abs(resample(first.weights_SK, points) - resample(other.weights_SK[:, order], points)).sum(axis=1)
        lines.append(
            f"L1 {first_path.name} - {path.name}: mean {gap.mean():.3f}  max {gap.max():.3f}  {sparkline(gap, points)}"
        )
    return Text(_printable("\n".join(lines)) if len(lines) == 1 else "\n".join(map(_printable, lines)))


def as_json(path: Path, schedule: Schedule) -> dict[str, Any]:
    """The same facts for programs."""
    weights_SK = schedule.weights_SK
    rows = validation_rows(schedule)
    losses = schedule.per_domain["validation_loss"]
    epochs_K = _epochs(schedule)
    domains = []
    for index, name in enumerate(schedule.domains):
        values = weights_SK[:, index]
        domain: dict[str, Any] = {
            "name": name,
            "start": float(values[0]),
            "end": float(values[-1]),
            "mean": float(values.mean()),
            "min": float(values.min()),
            "max": float(values.max()),
            "samples": int(schedule.per_domain["samples"][:, index].sum()),
            "epochs": None if epochs_K is None else float(epochs_K[index]),
            "first_validation_loss": float(losses[rows[0], index]) if len(rows) else None,
            "last_validation_loss": float(losses[rows[-1], index]) if len(rows) else None,
        }
        domains.append(domain)
    return {
        "file": str(path),
        "format_version": 1,
        "steps": len(schedule),
        "tokens": int(schedule.tokens_S[-1]),
        "has_policy": schedule.policy is not None,
        "info": schedule.info,
        "domains": domains,
        "entropy": {"start": float(schedule.per_step["entropy"][0]), "end": float(schedule.per_step["entropy"][-1])},
    }
