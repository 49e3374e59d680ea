"""Plots for the terminal: stacked areas of the weights, and curves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from acodm_cli.display.series import Series
from acodm_cli.display.style import colour_of, key_of
from acodm_cli.schedule.compose import means

Array = NDArray[np.float64]

HEIGHT = 14
_SPARKS = "▁▂▃▄▅▆▇█"
# The bit of each dot of a Braille character, by row and column.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


def sparkline(values_S: NDArray[np.floating], width: int) -> str:
    """Returns one line of `width` characters, scaled to the values' own range: flat if constant, blank if unknown."""
    points = means(
        values_S, np.unique(np.linspace(0, len(values_S), min(width, len(values_S)), endpoint=False).astype(int))
    )
    points = points[(np.arange(width) * len(points)) // width]
    known = np.isfinite(points)
    if not known.any():
        return " " * width
    low, span = points[known].min(), np.ptp(points[known])
    levels = np.full(width, 3) if span < 1e-6 else ((np.where(known, points, low) - low) / span * 7).round().astype(int)
    return "".join(_SPARKS[level] if there else " " for level, there in zip(levels, known, strict=True))


def area_plot(series: Series, width: int, colour: bool, title: str) -> Text:
    """Returns the plot of stacked areas over the run, with the first domain on top.

    In colour, each cell shows two half rows; without colour, each area is filled with its domain's letter.
    """
    columns = max(width - 6, 10)
    weights_CN = series.values_RN[(np.arange(columns) * len(series.values_RN)) // columns]
    rows = HEIGHT * (2 if colour else 1)
    # The domain at the middle of each row in each column.
    edges_CN = weights_CN.cumsum(axis=1) / weights_CN.sum(axis=1, keepdims=True)
    middles_R = (np.arange(rows) + 0.5) / rows
    domain_RC = (middles_R[:, None, None] >= edges_CN[None]).sum(axis=2).clip(max=len(series.names) - 1)
    plot = _title(title, width)
    for row in range(HEIGHT):
        label = {0: "100%", HEIGHT // 2: " 50%", HEIGHT - 1: "  0%"}.get(row, "    ")
        plot.append(f"{label} ", style="not bold")
        for column in range(columns):
            if colour:
                upper, lower = (series.number(domain_RC[2 * row + half, column]) for half in (0, 1))
                if upper == lower and column in (1, columns - 2):
                    # The letter at both ends lets those read the legend who cannot tell the colours apart.
                    plot.append(key_of(upper), style=f"bold {_on(upper)} on {colour_of(upper)}")
                else:
                    plot.append("▀", style=f"{colour_of(upper)} on {colour_of(lower)}")
            else:
                plot.append(key_of(series.number(domain_RC[row, column])), style="not bold")
        plot.append("\n")
    return plot.append(_steps(series, columns, 5))


def _on(index: int) -> str:
    red, green, blue = (int(colour_of(index)[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "white"


def line_plot(series: Series, width: int, colour: bool, title: str) -> Text:
    """Returns a plot of curves as Braille dots; each curve ends in its letter at the right."""
    margin = 9
    columns = max(width - margin - 4, 10)
    low, high = limits(series.values_RN)
    dots_RC = np.zeros((4 * HEIGHT, 2 * columns), dtype=bool)
    owner_RC = np.full((HEIGHT, columns), -1)
    values_XN = _interpolated(series, 2 * columns)
    # The curve that is drawn last is on top: the first one.
    for index in reversed(range(values_XN.shape[1])):
        row_X = _row(values_XN[:, index], low, high, 4 * HEIGHT)
        before = -1
        for x, row in enumerate(row_X.tolist()):
            if row < 0:
                before = -1
                continue
            top, bottom = (row, row) if before < 0 else (min(row, before), max(row, before))
            dots_RC[top : bottom + 1, x] = True
            owner_RC[top // 4 : bottom // 4 + 1, x // 2] = index
            before = row
    cells_RC = (dots_RC.reshape(HEIGHT, 4, columns, 2) * _DOTS[None, :, None, :]).sum(axis=(1, 3))
    ends = _end_labels(series, low, high)
    plot = _title(title, width)
    for row in range(HEIGHT):
        value = high - (high - low) * (row + 0.5) / HEIGHT
        label = _number(value, high - low, series.what == "weights") if row in (0, HEIGHT // 2, HEIGHT - 1) else ""
        label = label.rjust(margin - 1)
        plot.append(f"{label} ", style="not bold")
        for column in range(columns):
            owner = owner_RC[row, column]
            style = colour_of(series.number(owner)) if colour and owner >= 0 else "not bold"
            plot.append(chr(0x2800 + int(cells_RC[row, column])) if owner >= 0 else " ", style=style)
        plot.append(" ")
        for index in ends.get(row, [])[:3]:
            number = series.number(index)
            key = key_of(number) if series.of_domains else str(number + 1)
            plot.append(key, style=f"bold {colour_of(number)}" if colour else "bold")
        plot.append("\n")
    plot.append(_steps(series, columns, margin))
    if not series.of_domains:
        for index, name in enumerate(series.names):
            plot.append("\n" + " " * margin + f"{index + 1} {name}", style=colour_of(index) if colour else "not bold")
    return plot


def _number(value: float, span: float, percent: bool) -> str:
    """Returns the value as text, with as many digits as tell the ends of the axis apart."""
    if percent:
        return f"{value:z.1%}"
    digits = max(0, 2 - math.floor(math.log10(span)))
    return f"{value:z.{digits}f}" if digits <= 5 and abs(value) < 1e5 else f"{value:z.3g}"


def _interpolated(series: Series, columns: int) -> Array:
    """Returns the values at so many columns, interpolated by lines between the known ones. [columns, N]"""
    at_C = np.linspace(series.first_step, series.step_R[-1], columns)
    values_CN = np.full((columns, len(series.names)), np.nan)
    for index, values_R in enumerate(series.values_RN.T):
        known_R = np.isfinite(values_R)
        if known_R.any():
            values_CN[:, index] = np.interp(at_C, series.step_R[known_R], values_R[known_R], right=np.nan)
    return values_CN


def _end_labels(series: Series, low: float, high: float) -> dict[int, list[int]]:
    """Returns for each row the curves that end there, in the order of their values."""
    labels: dict[int, list[int]] = {}
    last_N = np.array(
        [values[np.isfinite(values)][-1] if np.isfinite(values).any() else np.nan for values in series.values_RN.T]
    )
    for index in np.argsort(-last_N):
        row = int(_row(last_N[index : index + 1], low, high, HEIGHT)[0])
        if row >= 0:
            labels.setdefault(row, []).append(int(index))
    return labels


def limits(values_RN: Array) -> tuple[float, float]:
    """Returns the ends of the y axis. The most extreme percent of the values is left out if it stretches the axis."""
    known = values_RN[np.isfinite(values_RN)]
    low, high = float(known.min()), float(known.max())
    inner_low, inner_high = (float(edge) for edge in np.percentile(known, [0.5, 99.5]))
    if high - low > 3 * (inner_high - inner_low) > 0:
        low, high = inner_low, inner_high
    room = 0.02 * (high - low) or max(abs(low) * 0.05, 1e-9)
    return low - room, high + room


def _row(values_X: Array, low: float, high: float, rows: int) -> NDArray[np.int64]:
    """Returns the row of each value, with 0 on top; -1 where the value is unknown."""
    known_X = np.isfinite(values_X)
    share_X = (high - np.where(known_X, values_X, low).clip(low, high)) / (high - low)
    return np.where(known_X, (share_X * rows).astype(np.int64).clip(0, rows - 1), -1)


def _title(title: str, width: int) -> Text:
    return Text(title.center(width).rstrip() + "\n", style="bold")


def _steps(series: Series, columns: int, margin: int) -> Text:
    first, last = f"step {series.first_step:,}", f"{series.step_R[-1]:,}"
    return Text(" " * margin + first + last.rjust(max(columns - len(first), 0)), style="not bold")
