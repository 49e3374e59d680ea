"""The numbers of a plot, the same for the terminal, pictures, HTML and CSV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acodm_cli.display.style import printable
from acodm_cli.errors import UsageError
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, STEP_COLUMNS, TARGETS
from acodm_cli.schedule.compose import means
from acodm_cli.schedule.schedule import Schedule


@dataclass(frozen=True)
class Plot:
    """A kind of plot. title, unit: as shown. columns: the columns of the file that the plot needs. sparse: whether only
    some steps have values."""

    title: str
    unit: str
    columns: tuple[str, ...]
    sparse: bool = False


PLOTS = {
    "weights": Plot("domain weights", "share of sequences", ("weight",)),
    "loss": Plot("training loss by domain", "nats", ("loss",)),
    "reward": Plot("reward by domain", "", ("reward",)),
    "energy": Plot(
        "self magnitude and interaction energy", "‖Gα‖², its two parts", ("self_energy", "interaction_energy")
    ),
    "validation": Plot("validation loss by domain", "nats", ("validation_loss",), sparse=True),
    "target": Plot("held-out text of targets", "bits per byte", (TARGETS,), sparse=True),
    "epochs": Plot("repetition by domain", "epochs: how often each sequence was seen", ("samples",)),
    "entropy": Plot("entropy of the weights", "nats", ("entropy",)),
    "evidence": Plot(
        "mixers of the study on validation text, mean over seeds, after the first fifth", "", (), sparse=True
    ),
}
# The share of a study's steps in which all mixers fall so fast that no difference between them can be seen.
STEEP = 0.2


def plot_of(what: str) -> Plot:
    """Returns the plot of this name: one of PLOTS, or any other column of the file."""
    return PLOTS.get(what) or Plot(what.replace("_", " "), "", (what,), sparse=True)


@dataclass(frozen=True)
class Series:
    """The curves of one plot.

    what: the name of the plot. values_RN: N curves at R points; NaN where unknown. step_R, tokens_R: the step and
    tokens of each point, which is the last of its span; the first span begins at first_step. band_RN: standard
    deviation over runs, if there were several. numbers: what decides the curves' colours and letters, if not their
    places here. whole: whether these are all domains. of_domains: whether each curve is of a domain.
    own_unit: the unit, if not that of all plots of this name.
    """

    what: str
    names: list[str]
    step_R: NDArray[np.int64]
    tokens_R: NDArray[np.int64]
    values_RN: NDArray[np.float64]
    band_RN: NDArray[np.float64] | None = None
    first_step: int = 1
    numbers: list[int] | None = None
    whole: bool = True
    of_domains: bool = True
    own_unit: str = ""

    def number(self, curve: int) -> int:
        """Returns the number that decides a curve's colour and letter."""
        return curve if self.numbers is None else self.numbers[curve]

    @property
    def title(self) -> str:
        """The title of the plot."""
        return plot_of(self.what).title

    @property
    def unit(self) -> str:
        """The unit of the values; it may be empty."""
        return self.own_unit or plot_of(self.what).unit

    @property
    def stacked(self) -> bool:
        """Whether the curves are the shares of one whole."""
        return self.what == "weights" and self.whole and self.band_RN is None


def check_plot(schedule: Schedule, what: str) -> None:
    """Raises UsageError if the schedule has no column of that name, and what is plotted is none of PLOTS."""
    if what not in PLOTS and what not in (*DOMAIN_COLUMNS, *STEP_COLUMNS, *schedule.metrics):
        known = list(dict.fromkeys([*PLOTS, *STEP_COLUMNS, *schedule.metrics]))
        shown = ", ".join(printable(name[:80]) for name in known[:40])
        raise UsageError(f"this schedule has no column {printable(what)!r} to plot; known: {shown}")


def series(schedule: Schedule, what: str, points: int, deviation_SK: NDArray[np.float32] | None = None) -> Series:
    """Returns the curves of a plot. Each point is a mean over an equal span of steps; where only some steps have
    values, over an equal span of those.

    what: one of PLOTS, or a column of the file. points: at most so many. deviation_SK: standard deviation of the
    weights over the runs that were merged.

    Raises:
        UsageError: the schedule has no such numbers.
    """
    check_plot(schedule, what)
    if what == "evidence":
        return _evidence(schedule, points)
    plot = plot_of(what)
    of_domains = plot.columns[0] in schedule.per_domain
    if what == "target":
        names = schedule.targets
        found = [schedule.per_step[f"{TARGETS}{name}.bits_per_byte"] for name in names]
        values_SN = np.stack(found, axis=1) if found else np.full((len(schedule), 1), np.nan)
    elif what == "epochs":
        epochs_SK = schedule.epochs_SK()
        if epochs_SK is None:
            raise UsageError("this schedule has no epochs to plot; it does not know the sizes of its domains")
        names, values_SN = schedule.domains, epochs_SK
    elif of_domains:
        names, values_SN = schedule.domains, schedule.per_domain[plot.columns[0]]
    else:
        names = [name.replace("self_energy", "self magnitude").replace("_", " ") for name in plot.columns]
        values_SN = np.stack([schedule.per_step[name] for name in plot.columns], axis=1)
    rows_S = np.arange(len(schedule))
    if plot.sparse:
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
        of_domains=of_domains,
    )


def _evidence(schedule: Schedule, points: int) -> Series:
    """Returns a curve per mixer of the study that the schedule is of, at its validations. Raises UsageError if it is of none."""
    evidence = schedule.run.evidence
    if evidence is None or not evidence.curves:
        raise UsageError("this schedule has no evidence to plot; proxy-train with --seeds and --against makes some")
    of_all = sorted({step for curve in evidence.curves for step in curve.steps})
    steps = [step for step in of_all if step >= STEEP * of_all[-1]]
    step_R = np.array(
        [steps[at] for at in np.unique(np.linspace(0, len(steps) - 1, min(points, len(steps))).astype(int))]
    )
    means_RN = np.stack(
        [
            np.interp(step_R, curve.steps, np.mean(curve.values, axis=0), left=np.nan, right=np.nan)
            for curve in evidence.curves
        ],
        axis=1,
    )
    bands = [
        np.interp(step_R, curve.steps, np.std(curve.values, axis=0, ddof=1), left=np.nan, right=np.nan)
        for curve in evidence.curves
        if len(curve.values) > 1
    ]
    of_step = (schedule.run.batch or 0) * (schedule.run.seq_len or 0)
    of_step = of_step if of_step * steps[-1] < 2**62 else 0
    unit = "objective, nats" if evidence.objective == "objective" else evidence.objective
    names = [printable(curve.mixer) for curve in evidence.curves]
    return Series(
        "evidence",
        names,
        step_R,
        step_R * of_step,
        means_RN,
        np.stack(bands, axis=1) if len(bands) == len(evidence.curves) else None,
        int(step_R[0]),
        of_domains=False,
        own_unit=unit,
    )


def chosen(domains: list[str], given: list[str]) -> list[str]:
    """Returns the domains that the user names by the beginnings of their names, in upper or lower case.

    Raises:
        UsageError: what is given begins the name of no domain, or of several.
    """
    found = []
    for name in given:
        begun = [domain for domain in domains if domain.casefold().startswith(name.casefold())]
        matches = [name] if name in begun else begun
        if len(matches) != 1:
            raise UsageError(f"--domains {name} is not one domain; choose of {', '.join(matches or domains)}")
        found.append(matches[0])
    return found
