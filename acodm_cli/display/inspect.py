"""Schedules in the terminal: header, plot and table by domain; or several schedules compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acodm_cli.display.evidence import evidence_lines
from acodm_cli.display.facts import BEYOND, MANY_EPOCHS, describe, distances, share_to_reach
from acodm_cli.display.plot import area_plot, line_plot, sparkline
from acodm_cli.display.series import Series, series
from acodm_cli.display.style import (
    bar,
    colour_of,
    cut,
    human_count,
    in_colour,
    joined,
    key_of,
    plot_width,
    printable,
    score,
)
from acodm_cli.errors import UsageError
from acodm_cli.schedule.info import Evaluation, RunInfo
from acodm_cli.schedule.schedule import Schedule

WIDEST_PLOT = 120
MOST_TARGETS = 20
NARROWEST_PLOT = 36
WIDE_TABLE = 104
BAR = 24
SHORTEST_NAME = 8
MOST_SCORES = 8
MOST_REPEATED = 8


@dataclass(frozen=True)
class View:
    """A schedule to show. name: as the user gave it. deviation_SK: standard deviation of the weights, if the schedule
    is a mean over runs. domains: indices of the domains to show, None for all; shares remain shares of all domains."""

    name: str
    schedule: Schedule
    deviation_SK: NDArray[np.float32] | None = None
    domains: list[int] | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `facts.describe` returns for the schedule."""
        return describe(self.name, self.schedule)

    @property
    def label(self) -> str:
        """The name without folders and ending."""
        return Path(self.name).name.removesuffix(".parquet")

    @property
    def shown(self) -> list[int]:
        """The indices of the domains to show."""
        return list(range(len(self.schedule.domains))) if self.domains is None else self.domains

    def curves(self, what: str, points: int, order: list[str]) -> Series:
        """Returns the curves of what is shown. order: all domains of the schedules that stand side by side; it decides
        letters and colours. Raises: UsageError if nothing was recorded of the domains to show."""
        curves = series(self.schedule, what, points, self.deviation_SK)
        if not curves.of_domains:
            return curves
        shown = self.shown
        if not np.isfinite(curves.values_RN[:, shown]).any():
            raise UsageError(f"of these domains no {what} was recorded; leave --domains out")
        names = [curves.names[index] for index in shown]
        return replace(
            curves,
            names=names,
            values_RN=curves.values_RN[:, shown],
            band_RN=None if curves.band_RN is None else curves.band_RN[:, shown],
            numbers=[order.index(name) for name in names],
            whole=self.domains is None,
        )


def domain_order(views: list[View]) -> list[str]:
    """Returns all domains of these schedules, each once."""
    return list(dict.fromkeys(name for view in views for name in view.schedule.domains))


def print_views(views: list[View], what: str, console: Console) -> None:
    """Prints one schedule, or several compared with the first."""
    side_by_side = max(1, min(len(views), plot_width(console) // NARROWEST_PLOT))
    width = min(plot_width(console) // side_by_side - (2 if side_by_side > 1 else 0), WIDEST_PLOT)
    colour = in_colour(console)
    plots = [_plot(view, what, width, colour, domain_order(views), len(views) > 1) for view in views]
    drawn = [plot for plot in plots if plot is not None]
    if len(views) == 1:
        console.print(header(views[0]), soft_wrap=True)
    else:
        console.print(Text("\n").join(map(_brief, views)), soft_wrap=True)
    console.print()
    if drawn:
        console.print(Columns(drawn, padding=(0, 1)) if len(drawn) > 1 else drawn[0])
    if len(views) == 1:
        console.print(domain_table(views[0], console, colour))
    else:
        # Beside the first schedule, each table holds as many others as there is room for.
        beside = max(1, (console.width - 35) // 19)
        for start in range(1, len(views), beside):
            part = [views[0], *views[start : start + beside]]
            console.print(comparison_table(part, domain_order(views), console.width, colour))
        console.print(distance_lines(views), soft_wrap=True)


def _plot(view: View, what: str, width: int, colour: bool, order: list[str], named: bool) -> Text | None:
    """Returns the plot of a schedule, but None for the weights of one step: the table says it all."""
    if what == "weights" and len(view.schedule) == 1:
        return None
    curves = view.curves(what, 2 * width, order)
    title = f"{curves.title}: {printable(view.label)}" if named else curves.title
    return (area_plot if curves.stacked else line_plot)(curves, width, colour, title)


def header(view: View) -> Text:
    """Returns what is known of a schedule, one labelled line for each fact."""
    schedule, known = view.schedule, view.facts
    run, domains = schedule.run, len(schedule.domains)
    start, end = (math.exp(known["entropy"][at]) for at in ("start", "end"))
    lines = [
        *(("evidence", line) for line in evidence_lines(run.evidence)),
        ("schedule", f"{view.name}  (format {known['format_version']}, acodm {run.acodm_version or '?'})"),
        ("mixture", run.title),
        ("made by", joined("  ", run.command, _seeds(run))),
        ("mixer", f"{run.mixer or '?'}  {'with' if known['has_policy'] else 'no'} policy"),
        ("model", joined("  ", run.model, run.model and run.parameters and f"{human_count(run.parameters)} parameters",
                         run.trained and "went on with trained weights")),
        ("corpus", joined("  ", run.corpus, f"{domains} domains")),
        ("tokens of", joined("  ", run.tokenizer, run.vocab_size and f"vocabulary {run.vocab_size}")),
        ("budget", joined("  ", _budget(schedule, known), _so_far(schedule), _for_tokens(run))),
        ("episodes", episodes_text(run)),
        ("warm-up", _warm_up(schedule)),
        ("entropy", _arrow(f"{known['entropy']['start']:z.3f}", f"{known['entropy']['end']:z.3f}") + " nats  effective domains "
                    f"{_arrow(f'{start:.1f}', f'{end:.1f}')} of {domains}"),
        ("energy", _energies(known["energy"])),
        ("drawn", "" if known["realised_l1"] is None else f"sequences within {known['realised_l1']:.4f} of the weights, in L1"),
        ("repeated", repetition_text(known["domains"])),
        *(("target", target_line(target)) for target in known["targets"][:MOST_TARGETS]),
        ("kept", kept_text(known["kept"])),
        ("evaluated", evaluation_text(run)),
        ("composed", ", ".join(run.composed)),
        ("source", run.source),
        ("caveat", run.caveat),
    ]  # fmt: skip
    return Text("\n").join(
        Text.assemble((f"{label:<10}", "bold"), printable(value)) for label, value in lines if value.strip()
    )


def target_line(target: dict[str, Any]) -> str:
    """Returns what is said of a target: whether it guides, and its losses at the beginning and at the end."""
    said = [f"{target['name']}  {'guides' if target['guided'] else 'measured only'}"]
    for what, unit in (("loss", "nats"), ("bits_per_byte", "bits per byte")):
        first, last = target[f"first_{what}"], target[f"last_{what}"]
        if first is not None:
            error = target["last_standard_error"]
            beside = f" ± {error:.3f}" if what == "loss" and error is not None else ""
            said.append(f"{_arrow(f'{first:.3f}', f'{last:.3f}')}{beside} {unit}")
    return "  ".join(said)


def kept_text(kept: list[dict[str, Any]]) -> str:
    """Returns whether what must not be forgotten is within its budget, and what is worst; an empty text if there is none."""
    if not kept:
        return ""
    within = sum(each["rise"] <= each["budget"] for each in kept)
    worst = max(kept, key=lambda each: each["rise"])
    said = f"{within} of {len(kept)} within {worst['budget']:.3g} of their loss before training"
    losses = _arrow(f"{worst['loss_before']:.3f}", f"{worst['last_loss']:.3f}")
    return f"{said}; worst: {worst['name']} {losses} ({worst['rise']:+.1%})"


def repetition_text(domains: list[dict[str, Any]]) -> str:
    """Returns which domains are repeated so often that this makes them worth less, and from which steps on; an empty text if none is.
    domains: their facts."""
    repeated = sorted((each for each in domains if each[BEYOND[0]] is not None), key=lambda each: -each["epochs"])
    said = []
    for each in repeated[:MOST_REPEATED]:
        passed = [(number, each[name]) for number, name in zip(MANY_EPOCHS, BEYOND, strict=True)]
        steps = [f"{number} epochs at step {step:,}" for number, step in passed if step is not None]
        said.append(f"{each['name']} past {' and '.join(steps)}")
    more = f"{len(repeated) - MOST_REPEATED} more in --json" if len(repeated) > MOST_REPEATED else ""
    return joined("; ", *said, more, repeated and "what that costs: arXiv 2305.16264")


def _for_tokens(run: RunInfo) -> str:
    """Returns what budget the corpus was cut for, if it was."""
    return f"corpus cut as for {human_count(run.for_tokens)} tokens" if run.for_tokens else ""


def _warm_up(schedule: Schedule) -> str:
    """Returns what is said of the warm-up, if there was one."""
    rows, last = schedule.warm_up_rows, schedule.run.warm_up
    if not last:
        return ""
    if not rows:
        return f"to step {last:,}: nothing is learned yet"
    return f"to step {last:,}: random, and left out of means, replay and exports"


def episodes_text(run: RunInfo) -> str:
    """Returns which episode of a run was the best, and the costs of all; an empty text if there was but one."""
    if run.episodes is None:
        return ""
    known = run.episodes
    costs = ["?" if cost is None else f"{cost:.3f}" for cost in known.costs[:MOST_SCORES]]
    more = f"{len(known.costs) - MOST_SCORES} more in --json" if len(known.costs) > MOST_SCORES else ""
    tokens = known.tokens is not None and f"{human_count(known.tokens)} tokens trained in all"
    return joined("; ", f"episode {known.best} of {known.number} was the best: {joined(', ', *costs, more)}", tokens)


def evaluation_text(run: RunInfo) -> str:
    """Returns the first scores of a run's model, and how they were measured; an empty text if there are none."""
    if run.evaluation is None:
        return ""
    scores = run.evaluation.scores
    said = [f"{each.task} {each.metric} {score(each.value, each.stderr)}" for each in scores[:MOST_SCORES]]
    more = f"{len(scores) - MOST_SCORES} more in --json" if len(scores) > MOST_SCORES else ""
    return joined("  ", *said, more, f"({how_measured(run.evaluation)})")


def how_measured(evaluation: Evaluation) -> str:
    """Returns by what an evaluation was made, and on how much."""
    return joined(", ", evaluation.harness, evaluation.limit and f"at most {evaluation.limit:,} samples of each task")


def _brief(view: View) -> Text:
    """Returns one line about a schedule, for when there are several."""
    schedule = view.schedule
    run = schedule.run
    said = (
        f"mixer {run.mixer or '?'}",
        run.title or run.model or "?",
        f"{run.corpus} {len(schedule.domains)} domains".strip(),
        _budget(schedule, view.facts) if schedule.tokens_S[-1] else "static",
        _seeds(run),
    )
    return Text.assemble((printable(view.label), "bold"), printable("  " + joined("  ", *said)))


def _seeds(run: RunInfo) -> str:
    return f"seed{'s' * (len(run.seeds) > 1)} {', '.join(map(str, run.seeds))}" if run.seeds else ""


def _arrow(start: str, end: str) -> str:
    return start if start == end else f"{start} -> {end}"


def _budget(schedule: Schedule, known: dict[str, Any]) -> str:
    run, rows = schedule.run, len(schedule)
    if rows == 1 and (run.composed or (run.steps or 1) == 1 or not known["tokens"]):
        return "one row: the same weights all the time"
    tokens = f"{human_count(known['tokens'])} tokens" if known["tokens"] else "tokens are not known"
    if run.batch and run.seq_len and rows * run.batch * run.seq_len == known["tokens"]:
        return f"{rows:,} steps x {run.batch} x {run.seq_len}  {tokens}"
    return f"{rows:,} rows  {tokens}"


def _so_far(schedule: Schedule) -> str:
    """Returns how far the schedule goes, if its run is still going or it is a part of one; else an empty text."""
    steps, run = int(schedule.step_S[-1]), schedule.run
    return f"to step {steps:,} of {run.steps:,}" if run.steps and steps < run.steps and not run.composed else ""


def _energies(parts: dict[str, dict[str, float]] | None) -> str:
    if parts is None:
        return ""
    names = {"self_energy": "self magnitude", "interaction_energy": "interaction"}
    return "  ".join(f"{names[name]} {part['start']:.3g} -> {part['end']:.3g}" for name, part in parts.items())


def domain_table(view: View, console: Console, colour: bool) -> Table:
    """Returns a table with a row per domain: weights, their shape over time, sequences, epochs, and first and last
    validation loss. A narrow console gets fewer columns; a static mixture gets a bar instead of the shape."""
    schedule = view.schedule
    domains = [view.facts["domains"][index] for index in view.shown]
    static, wide = len(schedule) == 1, plot_width(console) >= WIDE_TABLE
    drawn = any(domain["samples"] for domain in domains)
    has_epochs, has_losses = domains[0]["epochs"] is not None, domains[0]["last_validation_loss"] is not None
    has_tokens = domains[0]["tokens"] is not None
    largest = max(domain["mean"] for domain in domains) or 1.0
    # Each column is its heading and a function from a domain's facts and index to the cell.
    columns: list[tuple[str, Any]] = []
    if static:
        columns.append(("weight", lambda d, _: f"{d['mean']:.2%}"))
        columns.append(("share", lambda d, _: bar(d["mean"] / largest, BAR)))
    else:
        figures = ("start", "end", "mean", "min", "max") if wide else ("start", "end", "mean")
        columns += [(name, lambda d, _, name=name: f"{d[name]:.1%}") for name in figures]
        if view.deviation_SK is not None:
            deviation_K = view.deviation_SK.mean(axis=0)
            columns.append(("sd of steps", lambda _, index: f"{deviation_K[index]:.1%}"))
        columns.append(
            ("over time", lambda _, index: sparkline(schedule.per_domain["weight"][:, index], 16 if wide else 9))
        )
    if drawn and (wide or not has_epochs):
        columns.append(("tokens", lambda d, _: human_count(d["tokens"])) if has_tokens else ("samples", lambda d, _: human_count(d["samples"])))  # fmt: skip
    if drawn and has_epochs:
        # A star for each number of repetitions at which text is worth less.
        columns.append(
            ("epochs", lambda d, _: "*" * sum(d[name] is not None for name in BEYOND) + f"{d['epochs']:.2f}")
        )
    if has_losses:
        columns.append(("validation loss" if wide else "val. loss", lambda d, _: _losses(d, 3 if wide else 2)))
    rows = [[cell(domain, index) for _, cell in columns] for index, domain in zip(view.shown, domains, strict=True)]
    heads = [name for name, _ in columns]
    names = [printable(domain["name"]) for domain in domains]
    return _fitted(heads, names, [_key(index, colour) for index in view.shown], rows, console.width)


def _fitted(heads: list[str], names: list[str], keys: list[Text], rows: list[list[str]], width: int) -> Table:
    """Returns a table that fits into the width. Names are shortened; where that is not enough, the last columns are
    left out. Numbers are never cut."""
    widths = [
        max(map(len, [*head.split("\n"), *cells])) for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
    ]
    kept, edges = len(widths), 4 + max(len(key) for key in keys)
    while (room := width - edges - sum(widths[:kept]) - 2 * kept) < SHORTEST_NAME and kept > 1:
        kept -= 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("\n" * max(head.count("\n") for head in heads) + "domain", no_wrap=True)
    for head in heads[:kept]:
        table.add_column(head, justify="left" if head in ("over time", "share") else "right", no_wrap=True)
    for key, name, cells in zip(keys, names, rows, strict=True):
        table.add_row(key, Text(cut(name, max(room, SHORTEST_NAME))), *cells[:kept])
    return table


def _losses(domain: dict[str, Any], digits: int) -> str:
    first, last = domain["first_validation_loss"], domain["last_validation_loss"]
    return f"{first:.{digits}f} -> {last:.{digits}f}" if digits > 2 else f"{first:.{digits}f}→{last:.{digits}f}"


def _key(index: int, colour: bool) -> Text:
    """Returns the domain's letter, with its colour if there is colour, as in the plot."""
    return Text(f"{key_of(index)} ██" if colour else key_of(index), style=colour_of(index) if colour else "")


def comparison_table(views: list[View], order: list[str], width: int, colour: bool) -> Table:
    """Returns a table with the mean weight of every domain in every file and the difference to the first file; in a
    wide terminal, the last weight too. order: all domains, for their letters and colours."""
    shown = {view.schedule.domains[index] for view in views for index in view.shown}
    known = [{domain["name"]: domain for domain in view.facts["domains"]} for view in views]
    ends = width >= 40 + 30 * len(views) and any(len(view.schedule) > 1 for view in views)
    room = max(8, (width - 24) // len(views) - 10)
    heads = []
    for number_, view in enumerate(views):
        heads.append(f"{_short(printable(view.label), min(room, 24))}\nmean")
        heads += ["\nend"] * ends + ["\nΔ"] * bool(number_)
    rows, names = [], [name for name in order if name in shown]
    for name in names:
        cells: list[str] = []
        base = known[0].get(name)
        for number_, domains in enumerate(known):
            domain = domains.get(name)
            if domain is None:
                cells += ["-"] * (1 + ends + bool(number_))
                continue
            cells.append(f"{domain['mean']:.1%}")
            if ends:
                cells.append(f"{domain['end']:.1%}")
            if number_:
                cells.append("-" if base is None else f"{100 * (domain['mean'] - base['mean']):+z.1f}")
        rows.append(cells)
    return _fitted(heads, list(map(printable, names)), [_key(order.index(name), colour) for name in names], rows, width)


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


def _race(view: View, first: View, target: str) -> str:
    share = share_to_reach(view.schedule, first.schedule, target)
    reached = "never" if share is None else f"in {share:.0%} of its steps"
    return f"{'target':<9}{view.label} reaches the best of {first.label} on {target}: {reached}"


def distance_lines(views: list[View]) -> Text:
    """Returns the distances of each file's weights to those of the first file, over progress."""
    lines = []
    for view in views[1:]:
        far = distances(views[0].schedule, view.schedule)
        pair = f"{view.label} from {views[0].label}"
        for name, unit in (("l1", "L1"), ("kl", "KL, nats")):
            part = far[name]
            moves = part["max"] - part["mean"] > 1e-6
            shape = f"  max {part['max']:z.3f}  {sparkline(np.array(part['by_progress']), 24)}" if moves else ""
            lines.append(f"{unit:<9}{pair}: mean {part['mean']:z.3f}{shape}")
        for target in views[0].schedule.targets:
            if target in view.schedule.targets:
                lines.append(_race(view, views[0], target))
    return Text("\n".join(map(printable, lines)))
