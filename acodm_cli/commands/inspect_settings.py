"""The settings of `acodm inspect`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from acodm_cli.exports.catalog import EXPORTS
from acodm_cli.settings import check_options, setting

SHOWN, COMPOSED, WRITTEN, EXPORTED = "What is shown", "Compose", "Other forms", "Export to a trainer"


@dataclass(frozen=True)
class InspectSettings:
    """The settings that say what to show of schedules, and in which form."""

    schedules: list[str] = setting(MISSING)
    """One schedule to show, or several to compare: files (.parquet; your own weights also as .csv or .json), folders of runs that
    are still going (out.run), or names of reference schedules."""

    plot: str = setting("weights", panel=SHOWN)
    """What is plotted over the run: weights, loss, reward, energy, validation, epochs, entropy, evidence (the validation of all
    mixers of a study), or any other column of the file."""

    domains: str | None = setting(None, panel=SHOWN)
    """Only these domains, by the beginnings of their names: web,code. The shares stay those of all."""

    steps: str | None = setting(None, panel=SHOWN)
    """Only these steps: FIRST:LAST, either may be left out."""

    every: int = setting(1, least=1, panel=SHOWN)
    """One point for so many steps: their mean."""

    average: bool = setting(False, panel=COMPOSED)
    """The static mixture of the mean weights."""

    smooth: int = setting(1, least=1, panel=COMPOSED)
    """A moving average over so many steps."""

    merge: bool = setting(False, panel=COMPOSED)
    """The mean of all files, as of several seeds, with the deviation over them."""

    json: bool = setting(False, panel=WRITTEN)
    """Print the facts as JSON."""

    csv: bool = setting(False, panel=WRITTEN)
    """Print what is plotted as CSV, a row per step."""

    plain: bool = setting(False, panel=WRITTEN)
    """Print the table of domains tab-separated, without plots."""

    image: Path | None = setting(None, panel=WRITTEN)
    """Write the plot as .png, .svg or .pdf. This needs matplotlib."""

    html: Path | None = setting(None, panel=WRITTEN)
    """Write one page with all plots, to open in a browser."""

    out: Path | None = setting(None, panel=WRITTEN)
    """Write the composed schedule to this file; with --export, its files to this folder."""

    force: bool = setting(False, panel=WRITTEN)
    """Overwrite what is there."""

    export: str | None = setting(None, choices=EXPORTS, panel=EXPORTED)
    """Write the schedule in the syntax of a trainer."""

    stages: int = setting(8, least=1, panel=EXPORTED)
    """The number of stages of constant weights. They are placed to be closest to the schedule in KL."""

    target_steps: int | None = setting(None, least=1, most=2**40, panel=EXPORTED)
    """The steps of the trainer's run. Default: the schedule's."""

    target_batch: int | None = setting(None, least=1, most=2**40, panel=EXPORTED)
    """Its global batch in sequences. Default: the schedule's."""

    target_seq_len: int | None = setting(None, least=2, most=2**40, panel=EXPORTED)
    """Its tokens per sequence. Default: the schedule's."""

    target_ranks: int = setting(1, least=1, most=2**20, panel=EXPORTED)
    """Its data-parallel ranks, or hosts that load data. Trainers that draw on each by itself round by their number."""

    target_path: str = setting("tokens/{domain}", panel=EXPORTED)
    """Where the trainer finds a domain's tokens."""

    def __post_init__(self) -> None:
        check_options(self)
