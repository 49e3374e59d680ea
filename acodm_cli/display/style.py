"""How numbers, names and domains look, in the terminal and in pictures."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console

# Readable on light and dark backgrounds; neighbours differ in hue.
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#997700", "#7766cc",
    "#bbcc33", "#cc6688", "#0077bb", "#dd7700", "#009988", "#aa4499", "#88aa00", "#bb5555", "#5588dd", "#c0a060",
    "#60a080", "#9070b0",
)  # fmt: skip
KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def colour_of(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def key_of(index: int) -> str:
    """The letter that stands for a domain where there is no colour."""
    return KEYS[index % len(KEYS)]


def in_colour(console: Console) -> bool:
    """Whether areas can be told apart by colour: not in a pipe, nor with NO_COLOR."""
    return console.color_system is not None and not console.no_color


def human_count(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def printable(text: str) -> str:
    """Schedules come from strangers: no control characters reach the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def mapping(value: Any) -> dict[str, Any]:
    """Of metadata that should be an object, but may be anything."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float:
    """Of metadata that should be a number, but may be anything: NaN."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
