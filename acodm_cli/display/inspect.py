"""Schedules in the terminal: header, plot, table per domain; several of them compared."""

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

from acodm_cli.config import PlotName
from acodm_cli.display.facts import distances, facts
from acodm_cli.display.plot import area_plot, line_plot, sparkline
from acodm_cli.display.series import Series, series
from acodm_cli.display.style import colour_of, human_count, in_colour, key_of, mapping, number, printable
from acodm_cli.errors import UsageError
from acodm_cli.schedule.schedule import Schedule

WIDEST_PLOT = 120
NARROWEST_PLOT = 36
WIDE_TABLE = 104
BAR = 24
SHORTEST_NAME = 8


@dataclass(frozen=True)
class View:
    """A schedule to show. name: as the user gave it. deviation_SK: of the weights over the runs that it is the mean of. domains:
    indices of those to show, None for all; shares stay those of all."""

    name: str
    schedule: Schedule
    deviation_SK: NDArray[np.float32] | None = None
    domains: list[int] | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        return facts(self.name, self.schedule)

    @property
    def label(self) -> str:
        """Its name without folders and ending."""
        return Path(self.name).name.removesuffix(".parquet")

    @property
    def shown(self) -> list[int]:
        return list(range(len(self.schedule.domains))) if self.domains is None else self.domains

    def curves(self, what: PlotName, points: int, order: list[str]) -> Series:
        """Of what is shown. order: of all domains that are shown beside each other, which decides letters and colours."""
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
    """All domains of these schedules, each once."""
    return list(dict.fromkeys(name for view in views for name in view.schedule.domains))


def print_views(views: list[View], what: PlotName, console: Console) -> None:
    """One schedule, or several compared with the first."""
    if len(views) == 1:
        console.print(header(views[0]), soft_wrap=True)
    else:
        console.print(Text("\n").join(map(_brief, views)), soft_wrap=True)
    console.print()
    side_by_side = max(1, min(len(views), console.width // NARROWEST_PLOT))
    width = min(console.width // side_by_side - (2 if side_by_side > 1 else 0), WIDEST_PLOT)
    colour = in_colour(console)
    plots = [_plot(view, what, width, colour, domain_order(views), len(views) > 1) for view in views]
    drawn = [plot for plot in plots if plot is not None]
    if drawn:
        console.print(Columns(drawn, padding=(0, 1)) if len(drawn) > 1 else drawn[0])
    if len(views) == 1:
        console.print(domain_table(views[0], console.width, colour))
    else:
        # As many of the others beside the first as there is room for.
        beside = max(1, (console.width - 35) // 19)
        for start in range(1, len(views), beside):
            part = [views[0], *views[start : start + beside]]
            console.print(comparison_table(part, domain_order(views), console.width, colour))
        console.print(distance_lines(views), soft_wrap=True)


def _plot(view: View, what: PlotName, width: int, colour: bool, order: list[str], named: bool) -> Text | None:
    """None for the weights of one step: the table says it all."""
    if what == "weights" and len(view.schedule) == 1:
        return None
    curves = view.curves(what, 2 * width, order)
    title = f"{curves.title}: {printable(view.label)}" if named else curves.title
    return (area_plot if curves.stacked else line_plot)(curves, width, colour, title)


def header(view: View) -> Text:
    schedule, known = view.schedule, view.facts
    info = known["info"]
    corpus, tokenizer, mixer = (mapping(info.get(name)) for name in ("corpus", "tokenizer", "mixer"))
    domains = len(schedule.domains)
    start, end = (math.exp(known["entropy"][at]) for at in ("start", "end"))
    lines = [
        ("schedule", f"{view.name}  (format {known['format_version']}, acodm {info.get('acodm_version', '?')})"),
        ("mixture", _said(info, ("title", "")) if "title" in info else ""),
        ("made by", _said(info, ("command", ""), ("seed", "seed "), ("seeds", "seeds "))),
        ("mixer", f"{mixer.get('name', '?')}  {'with' if known['has_policy'] else 'no'} policy"),
        ("model", _model(info)),
        ("corpus", f"{corpus['name']}  {domains} domains" if "name" in corpus else f"{domains} domains"),
        ("tokens of", _said(tokenizer, ("name", ""), ("vocab_size", "vocabulary "))),
        ("budget", _budget(known)),
        ("entropy", _arrow(f"{known['entropy']['start']:.3f}", f"{known['entropy']['end']:.3f}") + " nats  effective domains "
                    f"{_arrow(f'{start:.1f}', f'{end:.1f}')} of {domains}"),
        ("energy", _energies(known["energy"])),
        ("drawn", "" if known["realised_l1"] is None else f"sequences within {known['realised_l1']:.4f} of the weights, in L1"),
        ("composed", ", ".join(map(str, info["composed"])) if isinstance(info.get("composed"), list) else ""),
        ("source", _said(info, ("source", ""))),
        ("caveat", _said(info, ("caveat", ""))),
    ]  # fmt: skip
    return Text("\n").join(
        Text.assemble((f"{label:<10}", "bold"), printable(value)) for label, value in lines if value.strip()
    )


def _brief(view: View) -> Text:
    """One line, for when there are several."""
    info, schedule = view.schedule.info, view.schedule
    mixer, corpus = mapping(info.get("mixer")), mapping(info.get("corpus"))
    said = (
        f"mixer {mixer.get('name', '?')}",
        str(info.get("title") or info.get("model", "?")),
        f"{corpus.get('name', '')} {len(schedule.domains)} domains".strip(),
        _budget(view.facts) if schedule.tokens_S[-1] else "static",
        f"seed {info['seed']}" if "seed" in info else "",
    )
    return Text.assemble((printable(view.label), "bold"), printable("  " + "  ".join(part for part in said if part)))


def _said(values: dict[str, Any], *names: tuple[str, str]) -> str:
    return "  ".join(f"{before}{values[name]}" for name, before in names if values.get(name) not in (None, ""))


def _arrow(start: str, end: str) -> str:
    return start if start == end else f"{start} -> {end}"


def _model(info: dict[str, Any]) -> str:
    parameters = number(info.get("parameters"))
    size = "" if math.isnan(parameters) else f"  {human_count(parameters)} parameters"
    return f"{info['model']}{size}" if "model" in info else ""


def _budget(known: dict[str, Any]) -> str:
    info = known["info"]
    if known["steps"] == 1:
        return "one row: the same weights all the time"
    tokens = f"{human_count(known['tokens'])} tokens"
    per_step = number(info.get("batch")) * number(info.get("seq_len"))
    if known["steps"] * per_step == known["tokens"]:
        return f"{known['steps']:,} steps x {info['batch']} x {info['seq_len']}  {tokens}"
    return f"{known['steps']:,} rows  {tokens}"


def _energies(parts: dict[str, dict[str, float]] | None) -> str:
    if parts is None:
        return ""
    names = {"self_energy": "self magnitude", "interaction_energy": "interaction"}
    return "  ".join(f"{names[name]} {part['start']:.3g} -> {part['end']:.3g}" for name, part in parts.items())


def domain_table(view: View, width: int, colour: bool) -> Table:
    """Per domain: weights, their shape over time, sequences, epochs, first and last validation loss; in a narrow terminal, less. Of
    a static mixture, a bar."""
    schedule = view.schedule
    domains = [view.facts["domains"][index] for index in view.shown]
    static, wide = len(schedule) == 1, width >= WIDE_TABLE
    drawn = any(domain["samples"] for domain in domains)
    has_epochs, has_losses = domains[0]["epochs"] is not None, domains[0]["last_validation_loss"] is not None
    has_tokens = domains[0]["tokens"] is not None
    largest = max(domain["mean"] for domain in domains) or 1.0
    # Heading, and the cell of a domain's facts and index.
    columns: list[tuple[str, Any]] = []
    if static:
        columns.append(("weight", lambda d, _: f"{d['mean']:.2%}"))
        columns.append(("share", lambda d, _: _bar(d["mean"] / largest)))
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
        columns.append(("epochs", lambda d, _: f"{d['epochs']:.2f}"))
    if has_losses:
        columns.append(("validation loss" if wide else "val. loss", lambda d, _: _losses(d, 3 if wide else 2)))
    rows = [[cell(domain, index) for _, cell in columns] for index, domain in zip(view.shown, domains, strict=True)]
    heads = [name for name, _ in columns]
    names = [printable(domain["name"]) for domain in domains]
    return _fitted(heads, names, [_key(index, colour) for index in view.shown], rows, width)


def _fitted(heads: list[str], names: list[str], keys: list[Text], rows: list[list[str]], width: int) -> Table:
    """In so many columns: names are shortened, and where that is not enough the last columns go. Numbers are never cut."""
    widths = [
        max(map(len, [*head.split("\n"), *cells])) for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
    ]
    kept = len(widths)
    while (room := width - 7 - sum(widths[:kept]) - 2 * kept) < SHORTEST_NAME and kept > 1:
        kept -= 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("\n" * max(head.count("\n") for head in heads) + "domain", no_wrap=True)
    for head in heads[:kept]:
        table.add_column(head, justify="left" if head in ("over time", "share") else "right", no_wrap=True)
    for key, name, cells in zip(keys, names, rows, strict=True):
        short = name if len(name) <= max(room, SHORTEST_NAME) else name[: max(room, SHORTEST_NAME) - 1] + "…"
        table.add_row(key, Text(short), *cells[:kept])
    return table


def _bar(share: float) -> str:
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _losses(domain: dict[str, Any], digits: int) -> str:
    first, last = domain["first_validation_loss"], domain["last_validation_loss"]
    return f"{first:.{digits}f} -> {last:.{digits}f}" if digits > 2 else f"{first:.{digits}f}→{last:.{digits}f}"


def _key(index: int, colour: bool) -> Text:
    """Its colour and its letter, as in the plot."""
    return Text(f"{key_of(index)} ██" if colour else key_of(index), style=colour_of(index) if colour else "")


def comparison_table(views: list[View], order: list[str], width: int, colour: bool) -> Table:
    """Mean weight of every domain in every file and the difference to the first file; in a wide terminal, the last weight too.
    order: of all domains, for their letters and colours."""
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
                cells.append("-" if base is None else f"{100 * (domain['mean'] - base['mean']):+.1f}")
        rows.append(cells)
    return _fitted(heads, list(map(printable, names)), [_key(order.index(name), colour) for name in names], rows, width)


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


def distance_lines(views: list[View]) -> Text:
    """Distances of each file's weights to the first file's, over progress."""
    lines = []
    for view in views[1:]:
        far = distances(views[0].schedule, view.schedule)
        pair = f"{view.label} from {views[0].label}"
        for name, unit in (("l1", "L1"), ("kl", "KL, nats")):
            part = far[name]
            moves = part["max"] - part["mean"] > 1e-6
            shape = f"  max {part['max']:.3f}  {sparkline(np.array(part['by_progress']), 24)}" if moves else ""
            lines.append(f"{unit:<9}{pair}: mean {part['mean']:.3f}{shape}")
    return Text("\n".join(map(printable, lines)))
