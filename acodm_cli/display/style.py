"""How numbers, names and domains look, in the terminal and in pictures."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rich.console import Console

NO_LIMIT = 1000
PLAIN_WIDTH = 80

# These are readable on light and dark backgrounds, and neighbours differ in hue.
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#997700", "#7766cc",
    "#bbcc33", "#cc6688", "#0077bb", "#dd7700", "#009988", "#aa4499", "#88aa00", "#bb5555", "#5588dd", "#c0a060",
    "#60a080", "#9070b0",
)  # fmt: skip
KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def colour_of(index: int) -> str:
    """Returns the colour of a domain, as #rrggbb."""
    return PALETTE[index % len(PALETTE)]


def key_of(index: int) -> str:
    """Returns the letter that stands for a domain where there is no colour."""
    return KEYS[index % len(KEYS)]


def in_colour(console: Console) -> bool:
    """Returns whether areas can be told apart by colour. In a pipe they cannot, nor with NO_COLOR."""
    return console.color_system is not None and not console.no_color


class Output(Console):
    """The console of what a command is asked for, on stdout. If its reader leaves, as `head` does, nothing is wrong."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, width=width_of(sys.stdout))

    def on_broken_pipe(self) -> None:
        """Called by rich when the reader has left."""
        raise BrokenPipeError


def width_of(stream: TextIO) -> int | None:
    """Returns the width of a console on this stream: None for the terminal's own, else no limit, because a log or another
    program has none."""
    return None if stream.isatty() or "COLUMNS" in os.environ else NO_LIMIT


def plot_width(console: Console) -> int:
    """Returns the width of what is drawn to fit: plots, and the choice of columns."""
    return PLAIN_WIDTH if console.width >= NO_LIMIT else console.width


def cut(name: str, width: int) -> str:
    """Returns a name that is not longer than this. It is cut in its middle, because names differ at both ends."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return name[: width - 1 - tail] + "…" + (name[-tail:] if tail else "")


def human_count(value: float) -> str:
    """Returns a number in three digits, with a letter for its size."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def score(value: float, stderr: float | None) -> str:
    """Returns a result of an evaluation, with its standard error if that is known."""
    return measured(value) if stderr is None else f"{measured(value)} ± {measured(stderr)}"


def measured(value: float) -> str:
    """Returns a measured number in four decimals, or in four digits if it is large."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def printable(text: str, instead: str = "?") -> str:
    """Returns the text with every character replaced that is not printable. Schedules come from strangers: no control
    characters may reach the terminal, and no marks that turn the direction of a text may reach a page."""
    return "".join(character if character.isprintable() else instead for character in text)


def joined(separator: str, *parts: object) -> str:
    """Returns those parts that say something, as one text."""
    return separator.join(str(part) for part in parts if part)


def bar(share: float, width: int) -> str:
    """Returns a horizontal bar of share·width cells, to an eighth of a cell."""
    full, rest = divmod(round(min(max(share, 0.0), 1.0) * width * 8), 8)
    return "█" * full + ("", *"▏▎▍▌▋▊▉")[rest]
