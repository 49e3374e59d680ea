"""`acodm inspect`: shows, compares, composes and exports schedules. It never imports torch."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acodm_cli.commands.export import run_export
from acodm_cli.commands.inspect_settings import EXPORTED, InspectSettings
from acodm_cli.display import facts
from acodm_cli.display.inspect import View, domain_order, print_views
from acodm_cli.display.series import PLOTS, check_plot, chosen, plot_of
from acodm_cli.display.style import Output, printable
from acodm_cli.errors import UsageError
from acodm_cli.schedule import compose
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.settings import declared
from acodm_cli.writing import atomic_file, cell, in_short

# The points of a curve on a page. It could not show more, and so it stays small enough to mail.
HTML_POINTS = 400


def run_inspect(settings: InspectSettings) -> None:
    """Shows or writes what the settings ask for.

    Raises:
        UsageError: the settings contradict each other or do not fit the schedules, or a file cannot be written.
        ScheduleError: a schedule cannot be read.
    """
    _check(settings)
    views = _views(settings)
    for view in views:
        check_plot(view.schedule, settings.plot)
    if settings.export is not None:
        run_export(views[0].name, views[0].schedule, settings)
        return
    written = [path for path in (settings.out, settings.image, settings.html) if path is not None]
    for path in written:
        if os.path.lexists(path) and not settings.force:
            raise UsageError(f"{path} exists; give another path, or --force to overwrite it")
    if settings.image is not None:
        _write_image(views, settings, settings.image)
    if settings.html is not None:
        _write_html(views, settings.plot, settings.html)
    if settings.out is not None:
        try:
            views[0].schedule.write(settings.out)
        except OSError as error:
            raise UsageError(f"cannot write {settings.out}: {in_short(error)}; choose another --out") from None
    if settings.json:
        values = [view.facts for view in views]
        values = [value | _compared(views[0], view) for value, view in zip(values, views, strict=True)]
        print(json.dumps(facts.json_value(values[0] if len(values) == 1 else values), indent=1, allow_nan=False))  # noqa: T201
    elif settings.csv:
        _print_csv(views, settings.plot)
    elif settings.plain:
        _print_plain(views)
    elif written:
        print(*written, sep="\n")  # noqa: T201 - the results, for scripts
    else:
        print_views(views, settings.plot, Output())


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
    if s.export is None:
        for name, each in declared(InspectSettings).items():
            if each.panel == EXPORTED and getattr(s, name) != each.default:
                raise UsageError(f"{each.option} says how to --export; give the trainer with --export, or leave it out")
    if s.force and not (s.out or s.image or s.html):
        raise UsageError("--force overwrites a file, and none is written; give it with --out, --image or --html")
    if s.average and s.every > 1:
        raise UsageError("--average is one row; give it without --every")


def _views(settings: InspectSettings) -> list[View]:
    """Returns the schedules, read, composed and cut as the settings ask."""
    s = settings
    everything = s.out is not None and s.export is None
    plots = [s.plot, *(PLOTS if s.html is not None else ())]
    needed = {*facts.COLUMNS, compose.WEIGHT_SD}
    columns = None if everything else {*needed, *(name for plot in plots for name in plot_of(plot).columns)}
    runs = [Schedule.load(source, columns) for source in s.schedules]
    first, last = _range(s.steps)
    if s.steps is not None:
        runs = [compose.between(run, first, last) for run in runs]
    views = [View(name, run, _deviation(run)) for name, run in zip(s.schedules, runs, strict=True)]
    if s.merge:
        mean, deviation_SK = compose.merge(runs)
        for unlike in compose.unlike(runs):
            print(f"warning: the merged runs differ in {unlike}", file=sys.stderr)  # noqa: T201
        views = [View(f"mean of {len(runs)} runs", mean, deviation_SK)]
    views = [_composed(view, s) for view in views]
    if s.domains is None:
        return views
    names = chosen(domain_order(views), [name.strip() for name in s.domains.split(",")])
    return [
        replace(view, domains=[view.schedule.domains.index(name) for name in names if name in view.schedule.domains])
        for view in views
    ]


def _deviation(run: Schedule) -> NDArray[np.float32] | None:
    """Returns the standard deviation of the weights over the runs of the study that a schedule is the mean of. [S, K]"""
    deviation_SK = run.per_domain.get(compose.WEIGHT_SD)
    # The file may be a stranger's.
    return None if deviation_SK is None else np.nan_to_num(deviation_SK).clip(0, 1)


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
    return {} if view is first else {"distance_to_first": facts.distances(first.schedule, view.schedule)}


def _print_csv(views: list[View], what: str) -> None:
    """Prints a row per step and a column per domain of any view. With several views, a first column names the view. The weights of
    a step add up to 1 in float64, so that others can take them for probabilities."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    order = domain_order(views)
    all_curves = [view.curves(what, len(view.schedule), order) for view in views]
    names = list(dict.fromkeys(name for curves in all_curves for name in curves.names))
    several = len(views) > 1
    # The shortest digits that are read as the same number; what was measured does not have so many.
    write = repr if what == "weights" else "{:.6g}".format
    writer.writerow([*(["schedule"] if several else []), "step", "tokens", *(cell(printable(name)) for name in names)])
    for view, curves in zip(views, all_curves, strict=True):
        values_RN = np.full((len(curves.step_R), len(names)), np.nan)
        values_RN[:, [names.index(name) for name in curves.names]] = curves.values_RN
        if what == "weights":
            values_RN /= view.schedule.weights_SK.sum(axis=1, keepdims=True)
        for step, tokens, values in zip(
            curves.step_R.tolist(), curves.tokens_R.tolist(), values_RN.tolist(), strict=True
        ):
            row = [step, tokens, *("" if np.isnan(value) else write(value) for value in values)]
            writer.writerow([cell(printable(view.name)), *row] if several else row)


def _print_plain(views: list[View]) -> None:
    """Prints one tab-separated line per schedule and domain."""
    names = ("start", "end", "mean", "min", "max", "samples", "tokens", "epochs", *facts.BEYOND, "first_validation_loss", "last_validation_loss")  # fmt: skip
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    writer.writerow(["schedule", "domain", *names])
    for view in views:
        for index in view.shown:
            domain = view.facts["domains"][index]
            values = ("" if domain[name] is None else domain[name] for name in names)
            writer.writerow(
                [
                    cell(printable(view.name)),
                    cell(printable(domain["name"])),
                    *(f"{v:.6g}" if isinstance(v, float) else v for v in values),
                ]
            )


def _write_image(views: list[View], settings: InspectSettings, path: Path) -> None:
    from acodm_cli.display.image import write_image

    write_image(views, settings.plot, path)


def _write_html(views: list[View], plot: str, path: Path) -> None:
    """Writes a page with all plots that there are numbers for, and the one that was asked for."""
    from acodm_cli.display.html import PageEntry, page

    entries = []
    for view in views:
        curves = []
        for what in dict.fromkeys([*PLOTS, plot]):
            # Not everything is recorded by every mixer.
            with contextlib.suppress(UsageError):
                curves.append(view.curves(what, HTML_POINTS, domain_order(views)))
        distance = None if view is views[0] else facts.distances(views[0].schedule, view.schedule)["l1"]
        entries.append(PageEntry(view.label, view.schedule.run, view.facts, curves, distance))
    try:
        with atomic_file(path) as file:
            file.write(page(" and ".join(view.label for view in views), entries).encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {in_short(error)}; choose another --html") from None
