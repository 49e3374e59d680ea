"""Schedule file, format version 1: tidy Parquet, one row per (step, domain), everything about the run in its metadata.

Columns: step, tokens (cumulative), domain, weight, samples, loss, reward, validation_loss, and per-step scalars that
are repeated in each row. Further nullable float columns may follow: metrics of a mixer, per step or per domain. In the
file's metadata, `acodm` is JSON about the run (its `phase` says which steps were warm-up), `acodm.policy` is the frozen policy as base64 of safetensors, and
`acodm.sha256` has digests of all of it. There is no pickle anywhere, and what is read is bounded and checked before it is used.

Shape letters: S rows, each of a step or of a span of steps; K domains.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from acodm_cli import __version__
from acodm_cli.errors import ScheduleError, UsageError
from acodm_cli.schedule import curriculum, digests
from acodm_cli.schedule.info import RunInfo
from acodm_cli.schedule.library import find_schedule
from acodm_cli.schedule.measures import entropy, in_single
from acodm_cli.schedule.pages import expansion_of
from acodm_cli.schedule.timeline import Timeline, rows_begin
from acodm_cli.writing import atomic_file, few, in_short

if TYPE_CHECKING:
    import pandas

FORMAT_VERSION = 1
_LOST = "the file has lost acodm's metadata: model, corpus, tokenizer, batch, warm-up and policy are not known"
MAX_METADATA_BYTES = 8 * 2**20
MAX_POLICY_BASE64_BYTES = 384 * 2**20
MAX_DOMAINS = 10_000
# Of row groups, columns and whatever else a footer lists.
MAX_LIST = 20_000
# A row takes about 4 bytes per column.
MAX_ROWS = 2**26
MAX_METRICS = 256
# The rows times the columns that are read.
MAX_CELLS = 2**30
# Numbers of further columns that are read.
MAX_METRIC_CELLS = 2**27
BLOCK_ROWS = 2**20
# A file may expand to so much, or to so many times its own size if that is more: what constant columns are squeezed to is small.
MAX_SMALL_BYTES = 2**27
MAX_EXPANSION = 200
SIMPLEX_TOLERANCE = 1e-3

DOMAIN_COLUMNS = {
    "weight": np.float32,
    "samples": np.int32,
    "loss": np.float32,
    "reward": np.float32,
    "validation_loss": np.float32,
}
# What the names of the columns of targets begin with: target.NAME.loss, target.NAME.bits_per_byte, …
TARGETS = "target."
STEP_COLUMNS = (
    "train_loss",
    "learning_rate",
    "interaction_energy",
    "self_energy",
    "critic_loss",
    "actor_objective",
    "entropy",
)
_REQUIRED = {"step", "tokens", "domain", "weight", "samples", "train_loss", "learning_rate", "entropy"}

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("domain", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        *[pa.field(n, pa.from_numpy_dtype(t), nullable=n not in _REQUIRED) for n, t in DOMAIN_COLUMNS.items()],
        *[pa.field(n, pa.float32(), nullable=n not in _REQUIRED) for n in STEP_COLUMNS],
    ]
)


Per = Literal["step", "domain"]


@dataclass(frozen=True, repr=False)
class Schedule:
    """A schedule in memory.

    domains: the K names, in order. step_S, tokens_S: int64, the last step of each row and the cumulative tokens after
    it. per_domain: column name to values [S, K]; missing values are NaN. per_step: column name to values [S]. Both hold
    only the columns that were read. info: the metadata's JSON object; `run` is the same, typed. policy: safetensors
    bytes. metrics: every further column of the file, read or not, and whether it is per step or per domain.
    """

    domains: list[str]
    step_S: NDArray[np.int64]
    tokens_S: NDArray[np.int64]
    per_domain: dict[str, NDArray[Any]]
    per_step: dict[str, NDArray[np.float32]]
    info: dict[str, Any] = field(default_factory=dict)
    policy: bytes | None = None
    metrics: dict[str, Per] = field(default_factory=dict)

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
        return _by_hand(curriculum.Curriculum(list(domains), kind, at_P, weights_PK, steps, batch, seq_len))

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
            columns[name] = pa.array(self.per_domain[name].reshape(-1), from_pandas=name not in _REQUIRED)
        for name in of_steps:
            columns[name] = pa.array(np.repeat(self.per_step[name], num_domains), from_pandas=name not in _REQUIRED)
        schema = pa.schema([*SCHEMA, *(pa.field(name, pa.float32()) for name in self.metrics)])
        info = {"format_version": FORMAT_VERSION, "domains": self.domains} | self.info
        if self.metrics:
            info["metrics"] = self.metrics
        description = json.dumps(info, sort_keys=True)
        metadata: dict[str | bytes, str] = {"acodm": description}
        if self.policy is not None:
            metadata["acodm.policy"] = base64.b64encode(self.policy).decode()
        metadata[digests.KEY] = digests.digests_of(description.encode(), self.policy, self._columns)
        return pa.table(columns, schema=schema).replace_schema_metadata(metadata)

    @property
    def _columns(self) -> dict[str, NDArray[Any]]:
        """All columns that were read, by name, each as [S] or [S, K]."""
        return {"step": self.step_S, "tokens": self.tokens_S, **self.per_domain, **self.per_step}

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
        if not path.is_file():
            raise ScheduleError(f"schedule {path} does not exist or is a folder; give a .parquet, .csv or .json file")
        if path.suffix.lower() in (".csv", ".json"):
            try:
                return _by_hand(curriculum.read(path))
            except (OSError, ValueError) as error:
                raise ScheduleError(f"{path} cannot be read as a curriculum: {in_short(error, 400)}") from None
        try:
            # Without these limits, a crafted footer could ask for any amount of memory.
            limits = {"thrift_string_size_limit": MAX_POLICY_BASE64_BYTES, "thrift_container_size_limit": MAX_LIST}
            with path.open("rb") as raw, pq.ParquetFile(raw, page_checksum_verification=True, **limits) as file:
                if b"acodm" not in (file.schema_arrow.metadata or {}):
                    return _read_bare(file, raw, path)
                info = _read_info(file, path)
                metrics = _check_columns(file.schema_arrow, info.pop("metrics", None), path)
                policy = _read_policy(file.schema_arrow.metadata, path)
                known = (*DOMAIN_COLUMNS, *STEP_COLUMNS, *metrics)
                wanted = [
                    name
                    for name in known
                    if name == "weight"
                    or columns is None
                    or name in columns
                    or (TARGETS in columns and name.startswith(TARGETS))
                ]
                _check_size(file, raw, wanted, path)
                schedule = replace(_read_steps(file, wanted, metrics, info, path), policy=policy)
                written = file.schema_arrow.metadata
                if digests.KEY in written:
                    differs = digests.what_differs(written[digests.KEY], written[b"acodm"], policy, schedule._columns)
                    if differs is not None:
                        raise ScheduleError(
                            f"{path}: its {differs} is not what was written; copy or make the file again"
                        )
                return schedule
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ScheduleError(
                f"{path} is not a readable Parquet file ({in_short(error, 160)}); make or copy it again"
            ) from None


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _read_info(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    raw = file.schema_arrow.metadata[b"acodm"]
    if len(raw) > MAX_METADATA_BYTES:
        raise ScheduleError(
            f"{path}: its metadata is larger than {MAX_METADATA_BYTES >> 20} MiB; not a usable schedule"
        )
    try:
        info = json.loads(raw)
        if not isinstance(info, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"{path}: its acodm metadata is not valid JSON ({error})") from None
    version = info.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ScheduleError(
            f"{path} has format version {version!r}, this acodm reads version {FORMAT_VERSION}; update acodm"
        )
    domains: Any = info.get("domains")
    strings = isinstance(domains, list) and all(isinstance(name, str) for name in domains)
    if not strings or not 1 <= len(domains) <= MAX_DOMAINS or len(set(domains)) != len(domains):
        raise ScheduleError(f"{path}: its metadata does not list distinct domain names; not a usable schedule")
    return info


def _check_columns(schema: pa.Schema, said: Any, path: Path) -> dict[str, Per]:
    """Checks the columns and returns the further ones in order, with whether each is per step or per domain. said: what
    the metadata say of them; a column that they do not mention is read per domain, which is right for both."""
    missing, further = sorted(set(SCHEMA.names) - set(schema.names)), set(schema.names) - set(SCHEMA.names)
    if missing:
        raise ScheduleError(f"{path}: missing columns ({', '.join(missing)}); not a version {FORMAT_VERSION} schedule")
    if len(set(schema.names)) < len(schema.names) or len(further) > MAX_METRICS:
        raise ScheduleError(f"{path}: it has columns twice, or more than {MAX_METRICS} of metrics")
    for expected in SCHEMA:
        found = schema.field(expected.name).type
        if expected.name == "domain":
            if not (pa.types.is_dictionary(found) and pa.types.is_string(found.value_type)):
                raise ScheduleError(f"{path}: column domain has type {found}, expected dictionary of string")
        elif found != expected.type:
            raise ScheduleError(f"{path}: column {expected.name} has type {found}, expected {expected.type}")
    metrics: dict[str, Per] = {}
    for name in (name for name in schema.names if name in further):
        if schema.field(name).type not in (pa.float32(), pa.float64()):
            raise ScheduleError(
                f"{path}: unknown column {name[:80]!r} of type {schema.field(name).type}; metrics are float"
            )
        metrics[name] = "step" if isinstance(said, dict) and said.get(name) == "step" else "domain"
    return metrics


def _read_policy(metadata: dict[bytes, bytes], path: Path) -> bytes | None:
    raw = metadata.get(b"acodm.policy")
    if raw is None:
        return None
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        raise ScheduleError(f"{path}: its policy is not valid base64; make or copy the file again") from None


def _check_size(file: pq.ParquetFile, raw: BinaryIO, wanted: list[str], path: Path) -> None:
    """Checks, before anything is expanded, that the columns are as large as their rows need, and the rows as many as a file of
    this size has."""
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    num_rows, size = file.metadata.num_rows, path.stat().st_size
    if num_rows == 0:  # this has a message of its own
        return
    if sum(groups) != num_rows or min(groups) <= 0:
        raise ScheduleError(f"{path}: its row groups do not have its {num_rows} rows; make or copy it again")
    if 4 * num_rows * len(wanted) > max(MAX_SMALL_BYTES, MAX_EXPANSION * size):
        raise ScheduleError(
            f"{path}: {len(wanted)} columns of {num_rows} rows in {size:,} bytes are more than acodm expands; if the file is "
            "what you made, write fewer rows"
        )
    wrong = expansion_of(raw, file.metadata, {"step", "tokens", "domain", *wanted})
    if wrong is not None:
        raise ScheduleError(f"{path}: {wrong}; not a usable schedule")


def _read_steps(
    file: pq.ParquetFile, wanted: list[str], metrics: dict[str, Per], info: dict[str, Any], path: Path
) -> Schedule:
    """Reads the rows in blocks of whole steps: even of a million steps, only what is kept of each is ever in memory."""
    domains = info.pop("domains")
    num_domains, num_rows = len(domains), file.metadata.num_rows
    if not 0 < num_rows <= MAX_ROWS or num_rows % num_domains:
        raise ScheduleError(
            f"{path}: {num_rows} rows are not a whole number of steps of {num_domains} domains, or more than {MAX_ROWS}"
        )
    further = sum(name in metrics for name in wanted)
    if num_rows * len(wanted) > MAX_CELLS or num_rows * further > MAX_METRIC_CELLS:
        raise ScheduleError(f"{path}: {len(wanted)} columns of {num_rows} rows are more than acodm reads")
    of_domains = {*DOMAIN_COLUMNS, *(name for name, per in metrics.items() if per == "domain")}
    blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in ("step", "tokens", *wanted)}
    for table in _blocks(file, ["step", "tokens", "domain", *wanted], num_domains):
        _check_domains(table.column("domain"), domains, path)
        values = {name: _values(table.column(name), name, num_domains, path) for name in blocks}
        for name in ("step", "tokens"):
            if (values[name] != values[name][:, :1]).any():
                raise ScheduleError(f"{path}: its rows are not grouped by step")
        _check_weights(values["weight"], values["step"][:, 0], path)
        if "samples" in values and (values["samples"] < 0).any():
            raise ScheduleError(f"{path}: its samples are negative")
        for name, values_BK in values.items():
            blocks[name].append(values_BK if name in of_domains else values_BK[:, 0].copy())
    columns = {name: np.concatenate(blocks.pop(name)) for name in list(blocks)}
    step_S, tokens_S = columns["step"], columns["tokens"]
    _check_order(step_S, tokens_S, path)
    return Schedule(
        domains=domains,
        step_S=step_S,
        tokens_S=tokens_S,
        per_domain={name: columns[name] for name in wanted if name in of_domains},
        per_step={name: columns[name] for name in wanted if name not in of_domains},
        info=info,
        metrics=metrics,
    )


def _check_order(step_S: NDArray[np.int64], tokens_S: NDArray[np.int64], path: Path) -> None:
    if step_S[0] < 0 or tokens_S[0] < 0 or (step_S[1:] <= step_S[:-1]).any() or (tokens_S[1:] < tokens_S[:-1]).any():
        raise ScheduleError(f"{path}: its steps or tokens are negative or do not increase")


def _blocks(file: pq.ParquetFile, columns: list[str], num_domains: int) -> Iterator[pa.Table]:
    """Yields the rows in order, in tables of whole steps."""
    rest: list[pa.Table] = []
    # Of a file with many columns, fewer rows at a time.
    rows = max(1, BLOCK_ROWS * 15 // max(15, len(columns)) // num_domains) * num_domains
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        table = pa.concat_tables([*rest, pa.Table.from_batches([batch])])
        whole = table.num_rows // num_domains * num_domains
        if whole:
            yield table.slice(0, whole)
        rest = [table.slice(whole)] if whole < table.num_rows else []
    if rest:
        raise ValueError("its last step is not whole")


def _check_domains(column: pa.ChunkedArray, domains: list[str], path: Path) -> None:
    number = {name: index for index, name in enumerate(domains)}
    in_order_K = np.arange(len(domains))
    for chunk in _whole_steps(column, len(domains)):
        names = chunk.dictionary.to_pylist()
        numbers_D = np.array([number.get(name, -1) for name in names], dtype=np.int64)
        indices = chunk.indices
        valid = not indices.null_count and len(names)
        if not valid or (numbers_D[np.from_dlpack(indices).reshape(-1, len(domains))] != in_order_K).any():
            raise ScheduleError(f"{path}: its rows do not list the domains of its metadata in order at every step")


def _whole_steps(column: pa.ChunkedArray, num_domains: int) -> list[pa.DictionaryArray]:
    """Returns the chunks of a column if each consists of whole steps, else the column as one chunk."""
    if all(len(chunk) % num_domains == 0 for chunk in column.chunks):
        return column.chunks
    return [column.unify_dictionaries().combine_chunks()]


def _values(column: pa.ChunkedArray, name: str, num_domains: int, path: Path) -> NDArray[Any]:
    """Returns a column of a block of steps, with NaN for missing values. [steps of the block, K]"""
    if column.null_count and name in _REQUIRED:
        raise ScheduleError(f"{path}: column {name} has missing values")
    if column.type == pa.float64():
        column = column.cast(pa.float32())
    if column.null_count:
        column = pc.fill_null(column, float("nan"))
    # to_numpy is avoided: it imports pandas.
    parts = [np.from_dlpack(chunk) for chunk in column.chunks]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, num_domains)


def _check_weights(weights_SK: NDArray[np.float32], step_S: NDArray[np.int64], path: Path) -> None:
    finite = np.isfinite(weights_SK) & (weights_SK >= 0)
    with np.errstate(invalid="ignore"):  # a damaged file may hold a signalling NaN
        sums_S = weights_SK.astype(np.float64).sum(axis=1)
    bad = ~finite.all(axis=1) | ~(np.abs(sums_S - 1) <= SIMPLEX_TOLERANCE)
    if bad.any():
        first = int(step_S[bad.argmax()])
        raise ScheduleError(f"{path}: the weights of step {first} are not on the simplex (finite, not negative, sum 1)")


# Without metadata


def _by_hand(own: curriculum.Curriculum, caveat: str = "") -> Schedule:
    """Returns a curriculum as a schedule. Nothing was drawn and nothing measured."""
    step_S, weights_SK = own.rows()
    per_domain, per_step = _nothing_recorded(weights_SK.shape)
    per_domain["weight"] = in_single(weights_SK)
    per_step["entropy"] = entropy(weights_SK).astype(np.float32)
    known = own.batch is not None and own.seq_len is not None and own.run_steps is not None and len(step_S) > 1
    tokens_S = step_S * ((own.batch or 0) * (own.seq_len or 0) if known else 0)
    said = {"steps": own.run_steps, "batch": own.batch, "seq_len": own.seq_len, "caveat": caveat or None}
    info = {"acodm_version": __version__, "title": own.title} | {
        name: value for name, value in said.items() if value is not None
    }
    return Schedule(own.domains, step_S, tokens_S, per_domain, per_step, info)


def _nothing_recorded(shape: tuple[int, ...]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
    """Returns the columns of a schedule of so many rows and domains of which nothing is known but that nothing was drawn."""
    per_domain: dict[str, NDArray[Any]] = {
        name: np.zeros(shape, dtype) if name == "samples" else np.full(shape, np.nan, dtype)
        for name, dtype in DOMAIN_COLUMNS.items()
    }
    return per_domain, {name: np.full(shape[0], np.nan, np.float32) for name in STEP_COLUMNS}


def _read_bare(file: pq.ParquetFile, raw: BinaryIO, path: Path) -> Schedule:
    """Reads a table without acodm's metadata, as pandas writes it: a schedule that was edited, whose rows and columns are kept, or
    a curriculum."""
    names = set(file.schema_arrow.names)
    try:
        if not {"domain", "weight"} <= names:
            raise ValueError(f"it has no columns domain and weight; {curriculum.FORMS}")
        kind = curriculum.kind_of(names)
    except ValueError as error:
        raise ScheduleError(
            f"{path} is Parquet, but not an acodm schedule: it has no acodm metadata, and {error}"
        ) from None
    recorded = names >= _REQUIRED
    wanted = [name for name in (SCHEMA.names if recorded else (kind, "steps", "domain", "weight")) if name in names]
    if file.metadata.num_rows > curriculum.MOST_WEIGHTS:
        raise ScheduleError(f"{path}: {file.metadata.num_rows} rows without acodm's metadata are more than acodm reads")
    _check_size(file, raw, wanted, path)
    table = file.read(columns=wanted)
    domain = table.column("domain").cast(pa.string()).combine_chunks().dictionary_encode()
    domains = domain.dictionary.to_pylist()
    if not table.num_rows or domain.null_count:
        raise ScheduleError(f"{path}: it has no rows, or rows without a domain")
    # to_numpy is avoided: it imports pandas.
    domain_N = np.from_dlpack(domain.indices)
    values: dict[str, NDArray[Any]] = {
        name: np.from_dlpack(pc.fill_null(table.column(name).cast(pa.float64()), float("nan")).combine_chunks())
        for name in wanted
        if name != "domain"
    }
    try:
        if recorded:
            return _recorded(values, domain_N, domains, path)
        return _by_hand(_drawn_up(values, kind, domain_N, domains), _LOST)
    except ValueError as error:
        raise ScheduleError(f"{path} cannot be read as a curriculum: {error}") from None


def _drawn_up(
    values: dict[str, NDArray[Any]], kind: curriculum.Kind, domain_N: NDArray[Any], domains: list[str]
) -> curriculum.Curriculum:
    lines = zip(values[kind].tolist(), (domains[index] for index in domain_N), values["weight"].tolist(), strict=True)
    steps = None
    if kind == "first_step" and "steps" in values:
        stages = zip(values[kind].tolist(), values["steps"].tolist(), strict=True)
        steps = curriculum.end_of([{"first_step": first, "steps": count} for first, count in set(stages)])
    return curriculum.from_lines(itertools.starmap(curriculum.Line, lines), kind, steps=steps)


def _recorded(values: dict[str, NDArray[Any]], domain_N: NDArray[Any], domains: list[str], path: Path) -> Schedule:
    """Returns the rows of a schedule that has lost its metadata, in any order. Raises: ValueError, ScheduleError"""
    step_S, row_N = np.unique(values["step"], return_inverse=True)
    shape = (len(step_S), len(domains))
    place_N = row_N.reshape(-1) * len(domains) + domain_N
    if len(place_N) != shape[0] * shape[1] or len(np.unique(place_N)) < len(place_N) or len(domains) > MAX_DOMAINS:
        raise ValueError("its rows do not list every domain once at every step")
    per_domain, per_step = _nothing_recorded(shape)
    sorted_N = np.argsort(place_N)
    columns_SK = {name: column_N[sorted_N].reshape(shape) for name, column_N in values.items()}
    if not all(np.isfinite(columns_SK[name]).all() for name in ("step", "tokens", "samples")):
        raise ValueError("its steps, tokens or samples are missing somewhere")
    for name in values:
        if name in DOMAIN_COLUMNS:
            per_domain[name] = columns_SK[name].astype(DOMAIN_COLUMNS[name])
        elif name in STEP_COLUMNS:
            per_step[name] = columns_SK[name][:, 0].astype(np.float32)
    whole_S, tokens_S = step_S.astype(np.int64), columns_SK["tokens"][:, 0].astype(np.int64)
    _check_order(whole_S, tokens_S, path)
    _check_weights(per_domain["weight"], whole_S, path)
    if (per_domain["samples"] < 0).any():
        raise ValueError("its samples are negative")
    per_domain["weight"] = in_single(per_domain["weight"])
    per_step["entropy"] = entropy(per_domain["weight"].astype(np.float64)).astype(np.float32)
    info = {"steps": int(whole_S[-1]), "title": "an edited schedule", "caveat": _LOST}
    return Schedule(domains, whole_S, tokens_S, per_domain, per_step, info)
