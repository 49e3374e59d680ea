"""Curricula of one's own: weights that somebody wrote down as a table, made into the rows of a schedule.

A table says at which `step` (from 1) or `progress` (from 0 to 1) of the run which domain has which weight. Between two such
points weights are linear; before the first and after the last they hold. Or it has stages of constant weights, which begin
after `first_step` steps, as `inspect --export json` and `csv` write them. What is not mentioned at a point has weight 0.

Shape letters: P points or stages, S rows of a schedule, K domains.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from acodm_cli.writing import few, uncell

Array = NDArray[np.float64]
Kind = Literal["step", "progress", "first_step"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MOST_BYTES = 64 * 2**20
MOST_DOMAINS = 10_000
MOST_STEPS = 2**40
MOST_TOKENS = 2**60
# Of a longer run, a row is a span of steps.
MOST_ROWS = 2**16
MOST_WEIGHTS = 2**23
# Where a table says shares of a run whose steps it does not say, a row is a thousandth of it.
ROWS_OF_PROGRESS = 1000
TOLERANCE = 1e-3
FORMS = (
    "give columns step (or progress, or first_step and steps), domain and weight; in JSON a list of such objects, or stages as of "
    "--export json"
)


class Line(NamedTuple):
    """One line of a table: a domain's weight at a place of the run."""

    at: float
    domain: str
    weight: float


@dataclass(frozen=True)
class Curriculum:
    """Weights at points of a run, or of its stages.

    kind: what at_P counts. steps: of the run; None takes the last point's, and leaves it open for `progress` and for a single point.
    batch, seq_len: of the run, if they are known.

    Raises:
        ValueError: the points do not increase or lie outside of the run, or weights are not shares of one whole.
    """

    domains: list[str]
    kind: Kind
    at_P: Array
    weights_PK: Array
    steps: int | None = None
    batch: int | None = None
    seq_len: int | None = None

    def __post_init__(self) -> None:
        at_P, weights_PK, names = self.at_P, self.weights_PK, self.domains
        if not 1 <= len(names) <= MOST_DOMAINS or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"there must be 1 to {MOST_DOMAINS} domains, with distinct names")
        if weights_PK.shape != (len(at_P), len(names)) or not len(at_P):
            raise ValueError(
                f"weights of shape {weights_PK.shape} are not those of {len(at_P)} points and {len(names)} domains"
            )
        if not np.isfinite(at_P).all() or at_P[0] < 0 or (np.diff(at_P) <= 0).any():
            raise ValueError(f"{self.kind} must be positive and increase from point to point")
        if self.kind == "progress":
            if at_P[-1] > 1:
                raise ValueError(f"progress is a share of the run, from 0 to 1, not {at_P[-1]:g}")
        elif (at_P != np.rint(at_P)).any() or at_P[-1] > MOST_STEPS:
            raise ValueError(f"{self.kind} must be a whole number, at most {MOST_STEPS}")
        sums_P = weights_PK.sum(axis=1)
        wrong_P = ~(np.isfinite(weights_PK) & (weights_PK >= 0)).all(axis=1) | ~(np.abs(sums_P - 1) <= TOLERANCE)
        if wrong_P.any():
            first = int(wrong_P.argmax())
            raise ValueError(
                f"the weights at {self.kind} {at_P[first]:g} add up to {sums_P[first]:.6g} or are negative; they must be shares that "
                "add up to 1"
            )
        if self.kind == "first_step":
            if at_P[0] != 0:
                raise ValueError(f"the first stage must begin at first_step 0, not {at_P[0]:g}")
            if self.steps is None and len(at_P) > 1:
                raise ValueError("it does not say how long the last stage is; give its steps")
        if self.steps is not None and not max(1, at_P[-1] + (self.kind == "first_step")) <= self.steps <= MOST_STEPS:
            raise ValueError(f"{self.steps} steps do not reach {self.kind} {at_P[-1]:g}")
        if (self.run_steps or 1) * (self.batch or 1) * (self.seq_len or 1) > MOST_TOKENS:
            raise ValueError(f"its run has more than {MOST_TOKENS} tokens")

    @property
    def run_steps(self) -> int | None:
        """The steps of the run; None if the table leaves them open."""
        if self.steps is not None or self.kind != "step" or len(self.at_P) == 1:
            return self.steps
        return max(1, int(self.at_P[-1]))

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        count = len(self.at_P)
        if count == 1:
            return "by hand: the same weights all the time"
        how = (
            "stages of constant weights" if self.kind == "first_step" else f"points by {self.kind}, linear between them"
        )
        return f"by hand: {count} {how}"

    def rows(self) -> tuple[NDArray[np.int64], Array]:
        """Returns the last step of every row of a schedule, and its weights. Rows are equal parts of the run, of one step each
        if there are not too many. [S], [S, K]"""
        weights_PK = self.weights_PK / self.weights_PK.sum(axis=1, keepdims=True)
        if len(weights_PK) == 1:
            return np.array([1]), weights_PK
        steps = self.run_steps
        most = max(2, min(MOST_ROWS, MOST_WEIGHTS // len(self.domains)))
        rows = min(steps or ROWS_OF_PROGRESS, most)
        total = steps or rows
        middle_S = (np.arange(rows) + 0.5) / rows * total  # in steps that are done
        last_S = np.rint(np.arange(1, rows + 1) / rows * total).astype(np.int64)
        if self.kind == "first_step":
            return last_S, weights_PK[np.searchsorted(self.at_P, middle_S, side="right") - 1]
        at_P = self.at_P * total if self.kind == "progress" else self.at_P - 0.5  # step t is the middle of t - 1 and t
        return last_S, np.stack([np.interp(middle_S, at_P, column_P) for column_P in weights_PK.T], axis=1)


def from_lines(
    lines: Iterable[Line],
    kind: Kind,
    domains: list[str] | None = None,
    steps: int | None = None,
    batch: int | None = None,
    seq_len: int | None = None,
) -> Curriculum:
    """Returns the curriculum of a table. domains: their order; None for that of the table. Raises: ValueError"""
    found: dict[float, dict[str, float]] = {}
    order: dict[str, None] = dict.fromkeys(domains or [])
    for line in lines:
        at_point = found.setdefault(line.at, {})
        if line.domain in at_point:
            raise ValueError(f"{kind} {line.at:g} has two weights of domain {line.domain!r}")
        at_point[line.domain] = line.weight
        order[line.domain] = None
    if not found:
        raise ValueError(f"there are no weights in it; {FORMS}")
    at, names = sorted(found), list(order)
    if len(at) * len(names) > MOST_WEIGHTS:
        raise ValueError(f"{len(at)} points of {len(names)} domains are more than acodm reads")
    weights_PK = np.array([[found[place].get(name, 0.0) for name in names] for place in at], dtype=np.float64)
    return Curriculum(names, kind, np.array(at, dtype=np.float64), weights_PK, steps, batch, seq_len)


def read(path: Path) -> Curriculum:
    """Reads a table from .csv or .json. Raises: OSError, ValueError"""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB; write fewer points")
    text = path.read_text(encoding="utf-8-sig")
    return _from_csv(text) if path.suffix.lower() == ".csv" else _from_json(text)


def kind_of(columns: Iterable[str]) -> Kind:
    """Returns which of the columns says the place in the run. Raises: ValueError if none or several do."""
    kinds = [kind for kind in KINDS if kind in columns]
    if len(kinds) != 1:
        raise ValueError(f"it has {' and '.join(kinds) or 'neither step, nor progress, nor first_step'}; {FORMS}")
    return kinds[0]


def _from_csv(text: str) -> Curriculum:
    """Reads a line per point and domain, or, as `inspect --csv` prints it, a line per point and a column per domain."""
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        columns = list(reader.fieldnames or [])
        kind = kind_of(columns)
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"it is not CSV: {error}") from None
    if not rows or any(None in row or None in row.values() for row in rows):
        raise ValueError(f"its lines do not have the {len(columns)} columns of the first; {FORMS}")
    if len(set(columns)) < len(columns):
        raise ValueError("it has a column twice")
    if {"domain", "weight"} <= set(columns):
        lines = [Line(_number(row[kind]), uncell(row["domain"]), _number(row["weight"])) for row in rows]
    else:
        names = [name for name in columns if name not in (kind, "tokens")]
        lines = [Line(_number(row[kind]), uncell(name), _number(row[name])) for row in rows for name in names]
    steps = end_of(rows) if kind == "first_step" and "steps" in columns else None
    return from_lines(lines, kind, steps=steps)


def _from_json(text: str) -> Curriculum:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    target: dict[str, Any] = {}
    domains = None
    rows = value
    if isinstance(value, dict):
        rows = value.get("stages")
        target = value["target"] if isinstance(value.get("target"), dict) else {}
        domains = value.get("domains")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(FORMS)
    if domains is not None and not (isinstance(domains, list) and all(isinstance(name, str) for name in domains)):
        raise ValueError("its domains are not a list of names")
    kind = kind_of(rows[0])
    lines = []
    for row in rows:
        weights = row["weights"] if isinstance(row.get("weights"), dict) else {row.get("domain"): row.get("weight")}
        for name, weight in weights.items():
            if not isinstance(name, str):
                raise ValueError(f"a domain is named {name!r}, which is no text; {FORMS}")
            lines.append(Line(_number(row.get(kind)), name, _number(weight)))
    steps = _whole(target.get("steps"))
    if kind == "first_step" and "steps" in rows[-1]:
        steps = end_of(rows)
    return from_lines(lines, kind, domains, steps, _whole(target.get("batch")), _whole(target.get("seq_len")))


def end_of(rows: Sequence[Mapping[Any, Any]]) -> int:
    """Returns the steps of the run that these stages make up. Raises: ValueError if there are gaps."""
    stages = {_number(row.get("first_step")): _number(row.get("steps")) for row in rows}
    ends = [first + steps for first, steps in sorted(stages.items())]
    gaps = [f"{end:g}" for end, first in zip(ends[:-1], sorted(stages)[1:], strict=True) if end != first]
    if gaps:
        raise ValueError(f"after stages that end at step {few(gaps)} the next one does not begin there")
    return int(ends[-1])


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{str(value)[:40]!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{str(value)[:40]!r} is not a finite number")
    return number


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= MOST_STEPS else None
