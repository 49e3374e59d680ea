"""Schedule file, format version 1: tidy Parquet, one row per (step, domain), everything about the run in its metadata.

Columns: step, tokens (cumulative), domain, weight, samples, loss, reward, validation_loss, and per-step scalars that
are repeated in each row. Further nullable float columns may follow: metrics of a mixer, per step or per domain. In the
file's metadata, `acodm` is JSON about the run (its `phase` says which steps were warm-up), `acodm.policy` is the frozen policy as base64 of safetensors, and
`acodm.sha256` has digests of all of it. There is no pickle anywhere, and what is read is bounded and checked before it is used.

Shape letters: S rows, each of a step or of a span of steps; K domains.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from acodm_cli.errors import UsageError
from acodm_cli.schedule import curriculum, digests, reading
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, FORMAT_VERSION, REQUIRED, SCHEMA, STEP_COLUMNS, TARGETS, Rows
from acodm_cli.schedule.info import RunInfo
from acodm_cli.schedule.library import find_schedule
from acodm_cli.schedule.timeline import Timeline, rows_begin
from acodm_cli.writing import atomic_file, few

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Schedule(Rows):
    """A schedule in memory, with what is asked of it. `columns.Rows` says what it holds."""

    @cached_property
    def run(self) -> RunInfo:
        """What the metadata say of the run."""
        return RunInfo.parse(self.info)

    @property
    def weights_SK(self) -> NDArray[np.float64]:
        """The weights of all rows, as float64. [S, K]"""
        return self.per_domain["weight"].astype(np.float64)

    def __len__(self) -> int:
        return len(self.step_S)

    def __repr__(self) -> str:
        policy = "with" if self.policy else "without"
        return f"Schedule({len(self)} rows to step {self.step_S[-1]}, {len(self.domains)} domains, {policy} policy)"

    @property
    def targets(self) -> list[str]:
        """The names of the targets whose losses were recorded."""
        ending = ".loss"
        return [
            name[len(TARGETS) : -len(ending)]
            for name, per in self.metrics.items()
            if name.startswith(TARGETS) and name.endswith(ending) and per == "step"
        ]

    @cached_property
    def warm_up_rows(self) -> int:
        """The number of first rows that are warm-up: random draws around the prior, which nothing was learned from yet. 0 if
        the file does not say, or if nothing comes after them."""
        rows = int((self.step_S <= self.run.warm_up).sum())
        return rows if rows < len(self) else 0

    @cached_property
    def learned(self) -> Schedule:
        """This schedule with the first learned weights in place of those of warm-up."""
        rows = self.warm_up_rows
        if not rows:
            return self
        weights_SK = self.per_domain["weight"].copy()
        weights_SK[:rows] = weights_SK[rows]
        return replace(self, per_domain=self.per_domain | {"weight": weights_SK})

    @property
    def sequences_K(self) -> NDArray[np.float64] | None:
        """How many sequences of each domain the run trained on, None if this is not known of all. [K]"""
        sizes_K = np.array([self.run.sequences.get(name, 0.0) for name in self.domains])
        return sizes_K if (sizes_K > 0).all() else None

    def epochs(self) -> NDArray[np.float64] | None:
        """Returns how often each domain's sequences have been seen in all rows together, None if this is not known. [K]"""
        sizes_K = self.sequences_K
        return None if sizes_K is None else self.per_domain["samples"].sum(axis=0, dtype=np.int64) / sizes_K

    def epochs_SK(self) -> NDArray[np.float32] | None:
        """Returns how often each domain's sequences have been seen after each row, None if this is not known. [S, K]"""
        sizes_K = self.sequences_K
        if sizes_K is None:
            return None
        return (self.per_domain["samples"].cumsum(axis=0, dtype=np.int64) / sizes_K).astype(np.float32)

    def steps_beyond(self, epochs: float) -> list[int | None] | None:
        """Returns the step in which each domain is first seen more often than this, None for a domain that never is; None if this is
        not known. Within a row of several steps, sequences count as evenly spread."""
        sizes_K = self.sequences_K
        if sizes_K is None:
            return None
        begin_S = rows_begin(self.step_S)
        steps: list[int | None] = []
        for index, size in enumerate(sizes_K):
            drawn_S = self.per_domain["samples"][:, index].cumsum(dtype=np.int64)
            row = int(np.searchsorted(drawn_S, epochs * size, side="right"))
            if row == len(drawn_S):
                steps.append(None)
                continue
            drawn = drawn_S[row - 1] if row else 0
            share = (epochs * size - drawn) / (drawn_S[row] - drawn)
            steps.append(int(begin_S[row] + share * (self.step_S[row] - begin_S[row])) + 1)
        return steps

    @cached_property
    def timeline(self) -> Timeline:
        """The weights, to be looked up at any point of another run."""
        return Timeline(self.per_domain["weight"], self.step_S, self.tokens_S)

    def weights(
        self, *, step: float | None = None, tokens: float | None = None, progress: float | None = None
    ) -> NDArray[np.float64]:
        """Returns the domain weights at one point of a run, in the order of `domains`. [K]

        They are interpolated between the recorded rows; before the first and after the last, the nearest row holds.

        step: optimiser step, from 1. tokens: those predicted before the step. progress: share of the run, from 0 to 1.

        Raises:
            ValueError: not exactly one of the three is given.
        """
        given = {
            name: at for name, at in (("step", step), ("tokens", tokens), ("progress", progress)) if at is not None
        }
        if len(given) != 1:
            raise ValueError("give one of step, tokens and progress")
        ((name, at),) = given.items()
        look_up = {
            "step": self.timeline.at_step,
            "tokens": self.timeline.at_tokens,
            "progress": self.timeline.at_progress,
        }
        return look_up[name](at)

    def in_order_of(self, domains: list[str]) -> Schedule:
        """Returns the schedule with its domains in another order. Raises: UsageError if these are not its domains."""
        if set(domains) != set(self.domains):
            ours, theirs = (_few(set(a) - set(b)) for a, b in ((self.domains, domains), (domains, self.domains)))
            raise UsageError(f"the domains differ: only in the schedule {ours}; only on the other side {theirs}")
        order = [self.domains.index(domain) for domain in domains]
        per_domain = {name: values_SK[:, order] for name, values_SK in self.per_domain.items()}
        return replace(self, domains=domains, per_domain=per_domain)

    # Making

    @classmethod
    def from_weights(
        cls,
        domains: Sequence[str],
        weights: ArrayLike,
        *,
        step: ArrayLike | None = None,
        progress: ArrayLike | None = None,
        first_step: ArrayLike | None = None,
        steps: int | None = None,
        batch: int | None = None,
        seq_len: int | None = None,
    ) -> Schedule:
        """Returns a curriculum of one's own as a schedule, which is written, applied and exported like any other.

        weights: [P, K] for P points of the run, or [K] for a static mixture; each adds up to 1. The points are given as one of
            step: of the run, from 1; the weights are linear between two points, and hold before the first and after the last.
            progress: the same as a share of the run, from 0 to 1.
            first_step: the steps before a stage of constant weights, from 0; it needs `steps`.
            Without these, there are the weights of every step.
        steps, batch, seq_len: of the run. Without steps, it ends at the last `step`; with `progress` it is left open.

        Raises:
            ValueError: the points do not increase or lie outside of the run, or weights are not shares of one whole.
        """
        given = {"step": step, "progress": progress, "first_step": first_step}
        kinds = [kind for kind in curriculum.KINDS if given[kind] is not None]
        if len(kinds) > 1:
            raise ValueError(f"give one of {' and '.join(kinds)}")
        weights_PK = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        kind = kinds[0] if kinds else "step"
        at = given[kind] if kinds else np.arange(1, len(weights_PK) + 1)
        at_P = np.atleast_1d(np.asarray(at, dtype=np.float64))
        own = curriculum.Curriculum(list(domains), kind, at_P, weights_PK, steps, batch, seq_len)
        return cls(**vars(reading.by_hand(own)))

    # Writing

    def write(self, path: str | Path, durable: bool = True) -> None:
        """Writes the file atomically: the path holds either what it held before or the complete new file. durable:
        whether this is so after a power cut too.

        Raises:
            OSError: the path cannot be written.
            ValueError: columns are missing.
        """
        with atomic_file(Path(path), durable) as file:
            pq.write_table(self.to_arrow(), file, compression="zstd", row_group_size=1 << 20, write_page_checksum=True)

    def to_arrow(self) -> pa.Table:
        """Returns the tidy table with the metadata, as the file holds it; all columns must have been read.

        Raises:
            ValueError: columns are missing.
        """
        held = {*self.per_domain, *self.per_step}
        if missing := [name for name in (*DOMAIN_COLUMNS, *STEP_COLUMNS, *self.metrics) if name not in held]:
            raise ValueError(
                f"a schedule without its columns {few(missing)} cannot be written; load it without naming columns, or make it by "
                "Schedule.from_weights"
            )
        steps, num_domains = self.per_domain["weight"].shape
        columns: dict[str, pa.Array] = {
            "step": pa.array(np.repeat(self.step_S, num_domains)),
            "tokens": pa.array(np.repeat(self.tokens_S, num_domains)),
            "domain": pa.DictionaryArray.from_arrays(
                pa.array(np.tile(np.arange(num_domains, dtype=np.int32), steps)), pa.array(self.domains, pa.string())
            ),
        }
        of_domains = [*DOMAIN_COLUMNS, *(name for name, per in self.metrics.items() if per == "domain")]
        of_steps = [*STEP_COLUMNS, *(name for name, per in self.metrics.items() if per == "step")]
        for name in of_domains:
            columns[name] = pa.array(self.per_domain[name].reshape(-1), from_pandas=name not in REQUIRED)
        for name in of_steps:
            columns[name] = pa.array(np.repeat(self.per_step[name], num_domains), from_pandas=name not in REQUIRED)
        schema = pa.schema([*SCHEMA, *(pa.field(name, pa.float32()) for name in self.metrics)])
        info = {"format_version": FORMAT_VERSION, "domains": self.domains} | self.info
        if self.metrics:
            info["metrics"] = self.metrics
        description = json.dumps(info, sort_keys=True)
        metadata: dict[str | bytes, str] = {"acodm": description}
        if self.policy is not None:
            metadata["acodm.policy"] = base64.b64encode(self.policy).decode()
        metadata[digests.KEY] = digests.digests_of(description.encode(), self.policy, self.columns)
        return pa.table(columns, schema=schema).replace_schema_metadata(metadata)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns the tidy table as a dataframe; all columns must have been read."""
        return self.to_arrow().to_pandas()

    # Reading

    @classmethod
    def load(cls, source: str | Path, columns: Collection[str] | None = None) -> Schedule:
        """Loads a schedule file, a table of weights of one's own (.csv, .json), a run that is still going (its folder), or a
        reference schedule by its name.

        columns: the same as for `read`. Raises: ScheduleError if nothing is found, or `read` refuses the file.
        """
        return cls.read(find_schedule(source), columns)

    @classmethod
    def read(cls, path: Path, columns: Collection[str] | None = None) -> Schedule:
        """Reads and checks a schedule file, or a table of weights (see `curriculum`).

        columns: those of DOMAIN_COLUMNS, STEP_COLUMNS and the metrics to read besides the weights; None for all. TARGETS stands
            for the columns of all targets.

        Raises:
            ScheduleError: the file is missing, not a schedule of this format version, truncated, or inconsistent.
        """
        return cls(**vars(reading.read(path, columns)))


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
