"""Plots as pictures, with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from acodm_cli.display.inspect import View, domain_order
from acodm_cli.display.plot import limits
from acodm_cli.display.series import Series
from acodm_cli.display.style import colour_of, printable
from acodm_cli.errors import UsageError
from acodm_cli.writing import atomic_file, in_short

FORMATS = (".png", ".svg", ".pdf")
POINTS = 800
# Names are at least so far apart, as a share of the height of a plot.
LEAST_GAP = 0.042
LONGEST_NAME = 40


def write_image(views: list[View], what: str, path: Path) -> None:
    """Writes one plot per schedule, side by side on one scale. Each domain has one colour, and its name stands where
    its curve or area ends.

    Raises:
        UsageError: the ending is not .png, .svg or .pdf, matplotlib is missing, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"--image {path}: its ending must be one of {', '.join(FORMATS)}")
    try:
        import matplotlib as mpl
    except ImportError:
        raise UsageError("--image needs matplotlib; pip install 'acodm[image]'") from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    curves = [view.curves(what, POINTS, domain_order(views)) for view in views]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
    }
    with mpl.rc_context(style):
        largest = max(float(one.values_RN[0].max()) for one in curves)
        size = (2.2 + 5.6 * len(views), 4.6)
        # Bars of static mixtures have their domains on the y axis, and the plot beside them may have others there.
        shared = all(len(one.step_R) > 1 for one in curves)
        figure, all_axes = plt.subplots(1, len(views), figsize=size, layout="constrained", sharey=shared, squeeze=False)
        for axes, view, one in zip(all_axes[0], views, curves, strict=True):
            _draw(axes, one)
            if len(one.step_R) == 1 and what == "weights":
                axes.set_xlim(0, 1.05 * largest)
            title = f"{one.title}: {printable(view.label)}" if len(views) > 1 else one.title
            axes.set_title(title, fontsize=11, loc="left", parse_math=False)
        try:
            with atomic_file(path) as file:
                figure.savefig(file, format=path.suffix[1:], dpi=160)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {in_short(error)}; choose another --image") from None
        finally:
            plt.close(figure)


def _draw(axes: Any, one: Series) -> None:
    colours = [colour_of(one.number(index)) for index in range(len(one.names))]
    step_R = one.step_R
    if one.what == "weights" and len(step_R) == 1:
        _draw_bars(axes, one, colours)
        return
    if one.stacked:
        # The first domain is on top, as in the terminal and in the table.
        axes.stackplot(step_R, one.values_RN.T[::-1], colors=colours[::-1], linewidth=0)
        axes.set_ylim(0, 1)
        last_N = one.values_RN[-1]
        ends_N = 1 - last_N.cumsum() + last_N / 2
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    else:
        for index, colour in enumerate(colours):
            values_R = one.values_RN[:, index]
            axes.plot(step_R, values_R, color=colour, linewidth=1.6)
            if one.band_RN is not None:
                band_R = one.band_RN[:, index]
                axes.fill_between(step_R, values_R - band_R, values_R + band_R, color=colour, alpha=0.2, linewidth=0)
        band_RN = 0 if one.band_RN is None else one.band_RN
        axes.set_ylim(*limits(np.concatenate([one.values_RN - band_RN, one.values_RN + band_RN])))
        if one.what == "weights":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        known = [values[np.isfinite(values)] for values in one.values_RN.T]
        ends_N = np.array([values[-1] if len(values) else np.nan for values in known])
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    axes.set_xlim(one.first_step, max(int(step_R[-1]), one.first_step + 1))
    axes.set_xlabel("step")
    axes.set_ylabel(one.unit)
    _label_ends(axes, one.names, colours, ends_N)


def _label(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _draw_bars(axes: Any, one: Series, colours: list[str]) -> None:
    rows = np.arange(len(one.names))
    axes.barh(rows, one.values_RN[0], color=colours)
    axes.set_yticks(rows, list(map(_label, one.names)), parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.set_xlabel(one.unit)


def _label_ends(axes: Any, names: list[str], colours: list[str], ends_N: np.ndarray) -> None:
    """Writes the names at the right, in the order of the ends. Names that would overlap are moved apart, and a line
    leads to where each belongs."""
    low, high = axes.get_ylim()
    places_N = (ends_N - low) / (high - low)
    order = [index for index in np.argsort(places_N) if np.isfinite(places_N[index])]
    gap = min(LEAST_GAP, 1.06 / max(len(order), 1))
    at = {int(index): float(np.clip(places_N[index], 0, 1)) for index in order}
    placed: list[float] = []
    for index in order:
        placed.append(max(at[int(index)], placed[-1] + gap if placed else -0.03))
    # Names that were pushed over the top come down again.
    top = 1.03
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], top)
        top = placed[number] - gap
    size = 9 if len(order) <= 14 else 7.5
    for index, place in zip(order, placed, strict=True):
        belongs = (1.002, 1.028), (at[int(index)], place)
        axes.plot(*belongs, color=colours[index], linewidth=1.2, transform=axes.transAxes, clip_on=False)
        axes.text(
            1.036,
            place,
            _label(names[index]),
            fontsize=size,
            va="center",
            transform=axes.transAxes,
            parse_math=False,
        )
