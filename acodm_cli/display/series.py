"""What of a schedule is plotted: the same numbers in the terminal, in pictures, in HTML and as CSV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acodm_cli.config import PlotName
from acodm_cli.errors import UsageError
from acodm_cli.schedule.compose import means
from acodm_cli.schedule.schedule import Schedule

TITLES: dict[PlotName, tuple[str, str]] = {
    "weights": ("domain weights", "share of sequences"),
    "loss": ("training loss by domain", "nats"),
    "reward": ("reward by domain", ""),
    "energy": ("self magnitude and interaction energy", "‖Gα‖², its two parts"),
    "validation": ("validation loss by domain", "nats"),
    "entropy": ("entropy of the weights", "nats"),
}
# Columns of the file that a plot needs, of those that are per domain and per step.
COLUMNS: dict[PlotName, tuple[str, ...]] = {
    "weights": ("weight",),
    "loss": ("loss",),
    "reward": ("reward",),
    "energy": ("self_energy", "interaction_energy"),
    "validation": ("validation_loss",),
    "entropy": ("entropy",),
}


@dataclass(frozen=True)
class Series:
    """values_RN: N curves at R points; NaN where unknown. step_R, tokens_R: of the points, the last of each span, the first of which
    begins at first_step. band_RN: their standard deviation over runs, if there were several. numbers: of the curves, for their colours
    and letters, where they are not their places here. whole: whether these are all domains."""

    what: PlotName
    names: list[str]
    step_R: NDArray[np.int64]
    tokens_R: NDArray[np.int64]
    values_RN: NDArray[np.float64]
    band_RN: NDArray[np.float64] | None = None
    first_step: int = 1
    numbers: list[int] | None = None
    whole: bool = True

    def number(self, curve: int) -> int:
        return curve if self.numbers is None else self.numbers[curve]

    @property
    def title(self) -> str:
        return TITLES[self.what][0]

    @property
    def unit(self) -> str:
        return TITLES[self.what][1]

    @property
    def stacked(self) -> bool:
        """Whether they are shares of one whole."""
        return self.what == "weights" and self.whole and self.band_RN is None

    @property
    def of_domains(self) -> bool:
        return self.what not in ("energy", "entropy")


def series(schedule: Schedule, what: PlotName, points: int, deviation_SK: NDArray[np.float32] | None = None) -> Series:
    """The curves of a plot, each point a mean over an equal span of steps; of validations, those that were made.

    points: at most so many. deviation_SK: of the weights over the runs that were merged.

    Raises:
        UsageError: the schedule has no such numbers.
    """
    names = schedule.domains
    if what in ("energy", "entropy"):
        names = [name.replace("self_energy", "self magnitude").replace("_", " ") for name in COLUMNS[what]]
        values_SN = np.stack([schedule.per_step[name] for name in COLUMNS[what]], axis=1)
    else:
        values_SN = schedule.per_domain[COLUMNS[what][0]]
    rows_S = np.arange(len(schedule))
    if what == "validation":
        rows_S = np.flatnonzero(np.isfinite(values_SN).any(axis=1))
        values_SN = values_SN[rows_S]
    if not np.isfinite(values_SN).any():
        raise UsageError(f"this schedule has no {what} to plot; it was not recorded")
    points = min(points, len(rows_S))
    edges = np.linspace(0, len(rows_S), points + 1).astype(np.int64)
    last_R = rows_S[edges[1:] - 1]
    starts_R = edges[:-1]
    band_RN = None if deviation_SK is None or what != "weights" else means(deviation_SK, starts_R).astype(np.float64)
    return Series(
        what,
        names,
        schedule.step_S[last_R],
        schedule.tokens_S[last_R],
        means(values_SN, starts_R).astype(np.float64),
        band_RN,
        int(schedule.step_S[rows_S[0]]),
    )


def chosen(domains: list[str], given: list[str]) -> list[str]:
    """The domains that the user names, by the beginnings of their names, in any case.

    Raises:
        UsageError: what begins the name of none of them, or of several.
    """
    found = []
    for name in given:
        begun = [domain for domain in domains if domain.casefold().startswith(name.casefold())]
        matches = [name] if name in begun else begun
        if len(matches) != 1:
            raise UsageError(f"--domains {name} is not one domain; choose of {', '.join(matches or domains)}")
        found.append(matches[0])
    return found
