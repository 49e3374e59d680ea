"""`acodm inspect`: show, compare, compose and export schedules. Never imports torch."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from acodm_cli.commands.export import run_export
from acodm_cli.config import ExportName, PlotName
from acodm_cli.display import facts as of
from acodm_cli.display.inspect import View, domain_order, print_views
from acodm_cli.display.series import COLUMNS, chosen
from acodm_cli.display.style import printable
from acodm_cli.errors import UsageError
from acodm_cli.schedule import compose
from acodm_cli.schedule.schedule import Schedule

# More than these a page does not show, and it stays small enough to mail.
HTML_POINTS = 400


@dataclass(frozen=True)
class InspectSettings:
    """The options of the command, as given."""

    schedules: list[str]
    plot: PlotName
    domains: str | None
    steps: str | None
    every: int
    average: bool
    smooth: int
    merge: bool
    json: bool
    csv: bool
    plain: bool
    image: Path | None
    html: Path | None
    out: Path | None
    force: bool
    export: ExportName | None
    stages: int
    target_steps: int | None
    target_batch: int | None
    target_seq_len: int | None
    target_path: str


def run_inspect(settings: InspectSettings) -> None:
    """Raises: UsageError, ScheduleError."""
    _check(settings)
    views = _views(settings)
    if settings.export is not None:
        run_export(views[0].name, views[0].schedule, settings)
        return
    written = [path for path in (settings.out, settings.image, settings.html) if path is not None]
    for path in written:
        if path.exists() and not settings.force:
            raise UsageError(f"{path} exists; give another path, or --force to overwrite it")
    if settings.image is not None:
        _write_image(views, settings, settings.image)
    if settings.html is not None:
        _write_html(views, settings.html)
    if settings.out is not None:
        views[0].schedule.write(settings.out)
    if settings.json:
        values = [view.facts for view in views]
        values = [value | _compared(views[0], view) for value, view in zip(values, views, strict=True)]
        print(json.dumps(_finite(values[0] if len(values) == 1 else values), indent=1, allow_nan=False))  # noqa: T201
    elif settings.csv:
        _print_csv(views, settings.plot)
    elif settings.plain:
        _print_plain(views)
    elif written:
        print(*written, sep="\n")  # noqa: T201 - the results, for scripts
    else:
        print_views(views, settings.plot, Console(highlight=False, markup=False))


def _check(settings: InspectSettings) -> None:
    s = settings
    if s.json + s.csv + s.plain > 1:
        raise UsageError("give one of --json, --csv and --plain")
    several = len(s.schedules) > 1 and not s.merge
    if several and (s.out is not None or s.export is not None):
        raise UsageError("--out and --export take one schedule; give one file, or --merge")
    if s.merge and len(s.schedules) < 2:
        raise UsageError("--merge takes several schedules, as of several seeds")
    if s.export is not None and s.out is None:
        raise UsageError(f"give the folder for the files with --out, for example --out {s.export}/")
    if s.out is not None and s.domains is not None:
        raise UsageError("--domains only shows a part; what --out writes has all domains")
    if s.export is not None and (s.json or s.csv or s.plain or s.image is not None or s.html is not None):
        raise UsageError("--export writes its own files; give it without --json, --csv, --plain, --image and --html")
    if s.average and s.every > 1:
        raise UsageError("--average is one row; give it without --every")


def _views(settings: InspectSettings) -> list[View]:
    """Read, composed and cut as asked."""
    s = settings
    everything = s.out is not None and s.export is None
    plots = list(COLUMNS) if s.html is not None else [s.plot]
    columns = None if everything else {*of.COLUMNS, *(name for plot in plots for name in COLUMNS[plot])}
    runs = [Schedule.load(source, columns) for source in s.schedules]
    first, last = _range(s.steps)
    if s.steps is not None:
        runs = [compose.between(run, first, last) for run in runs]
    views = [View(name, run) for name, run in zip(s.schedules, runs, strict=True)]
    if s.merge:
        mean, deviation_SK = compose.merge(runs)
        views = [View(f"mean of {len(runs)} runs", mean, deviation_SK)]
    views = [_composed(view, s) for view in views]
    if s.domains is None:
        return views
    names = chosen(domain_order(views), [name.strip() for name in s.domains.split(",")])
    return [
        replace(view, domains=[view.schedule.domains.index(name) for name in names if name in view.schedule.domains])
        for view in views
    ]


def _composed(view: View, settings: InspectSettings) -> View:
    schedule, deviation_SK = view.schedule, view.deviation_SK
    if settings.smooth > 1:
        schedule = compose.smooth(schedule, settings.smooth)
    if settings.average:
        schedule, deviation_SK = compose.average(schedule), None
    elif settings.every > 1:
        if deviation_SK is not None:
            deviation_SK = compose.means(deviation_SK, compose.spans(len(schedule), settings.every))
        schedule = compose.thin(schedule, settings.every)
    return replace(view, schedule=schedule, deviation_SK=deviation_SK)


def _range(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    try:
        if colon:
            return int(first) if first else None, int(last) if last else None
    except ValueError:
        pass
    raise UsageError(f"--steps {text} is not FIRST:LAST, for example 100:200 or :500")


def _compared(first: View, view: View) -> dict[str, Any]:
    return {} if view is first else {"distance_to_first": of.distances(first.schedule, view.schedule)}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities: null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_csv(views: list[View], what: PlotName) -> None:
    """A row per step, a column per domain; of several schedules, their names first, and all of their domains."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    order = domain_order(views)
    all_curves = [view.curves(what, len(view.schedule), order) for view in views]
    names = list(dict.fromkeys(name for curves in all_curves for name in curves.names))
    several = len(views) > 1
    writer.writerow([*(["schedule"] if several else []), "step", "tokens", *map(printable, names)])
    for view, curves in zip(views, all_curves, strict=True):
        values_RN = np.full((len(curves.step_R), len(names)), np.nan)
        values_RN[:, [names.index(name) for name in curves.names]] = curves.values_RN
        for step, tokens, values in zip(curves.step_R.tolist(), curves.tokens_R.tolist(), values_RN, strict=True):
            row = [step, tokens, *("" if np.isnan(value) else f"{value:.6g}" for value in values)]
            writer.writerow([printable(view.name), *row] if several else row)


def _print_plain(views: list[View]) -> None:
    """Tab-separated, one line per schedule and domain."""
    names = ("start", "end", "mean", "min", "max", "samples", "tokens", "epochs", "first_validation_loss", "last_validation_loss")  # fmt: skip
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    writer.writerow(["schedule", "domain", *names])
    for view in views:
        for index in view.shown:
            domain = view.facts["domains"][index]
            values = ("" if domain[name] is None else domain[name] for name in names)
            writer.writerow(
                [
                    printable(view.name),
                    printable(domain["name"]),
                    *(f"{v:.6g}" if isinstance(v, float) else v for v in values),
                ]
            )


def _write_image(views: list[View], settings: InspectSettings, path: Path) -> None:
    from acodm_cli.display.image import write_image

    write_image(views, settings.plot, path)


def _write_html(views: list[View], path: Path) -> None:
    """All plots that there are numbers for."""
    from acodm_cli.display.html import Run, page

    runs = []
    for view in views:
        curves = []
        for what in COLUMNS:
            # Not everything is recorded by every mixer.
            with contextlib.suppress(UsageError):
                curves.append(view.curves(what, HTML_POINTS, domain_order(views)))
        runs.append(Run(view.label, view.facts, curves))
    try:
        path.write_text(page(" and ".join(view.label for view in views), runs), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another --html") from None
