"""Schedule file, format version 1: tidy Parquet, one row per (step, domain), everything about the run in its metadata.

Columns: step, tokens (cumulative), domain, weight, samples, loss, reward, validation_loss, and per-step scalars
repeated in each row. File metadata: `acodm` is JSON about the run, `acodm.policy` the frozen policy as base64 of
safetensors. There is no pickle anywhere, and what is read is bounded and checked before it is used.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from acodm_cli.errors import ScheduleError, UsageError
from acodm_cli.schedule.library import find_schedule
from acodm_cli.schedule.timeline import Timeline
from acodm_cli.writing import partial_prefix

if TYPE_CHECKING:
    import pandas

FORMAT_VERSION = 1
MAX_METADATA_BYTES = 8 * 2**20
MAX_POLICY_BASE64_BYTES = 384 * 2**20
MAX_DOMAINS = 10_000
# About 4 bytes per column of each.
MAX_ROWS = 2**26
BLOCK_ROWS = 2**20
SIMPLEX_TOLERANCE = 1e-3

DOMAIN_COLUMNS = {
    "weight": np.float32,
    "samples": np.int32,
    "loss": np.float32,
    "reward": np.float32,
    "validation_loss": np.float32,
}
STEP_COLUMNS = (
    "train_loss",
    "learning_rate",
    "interaction_energy",
    "self_energy",
    "critic_loss",
    "actor_objective",
    "entropy",
)
_NULLABLE = {"loss", "reward", "validation_loss", *STEP_COLUMNS} - {"train_loss", "learning_rate", "entropy"}

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("domain", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        *[pa.field(n, pa.from_numpy_dtype(t), nullable=n in _NULLABLE) for n, t in DOMAIN_COLUMNS.items()],
        *[pa.field(n, pa.float32(), nullable=n in _NULLABLE) for n in STEP_COLUMNS],
    ]
)


@dataclass(frozen=True, repr=False)
class Schedule:
    """A schedule in memory.

    domains: K names in order. step_S, tokens_S: int64, cumulative tokens after each step. per_domain: column name to
    [S, K]; missing values are NaN. per_step: column name to [S]. Of both, those that were read. info: the run, JSON. policy: safetensors bytes.
    """

    domains: list[str]
    step_S: NDArray[np.int64]
    tokens_S: NDArray[np.int64]
    per_domain: dict[str, NDArray[Any]]
    per_step: dict[str, NDArray[np.float32]]
    info: dict[str, Any] = field(default_factory=dict)
    policy: bytes | None = None

    @property
    def weights_SK(self) -> NDArray[np.float64]:
        return self.per_domain["weight"].astype(np.float64)

    def __len__(self) -> int:
        return len(self.step_S)

    def __repr__(self) -> str:
        policy = "with" if self.policy else "without"
        return f"Schedule({len(self)} rows to step {self.step_S[-1]}, {len(self.domains)} domains, {policy} policy)"

    @cached_property
    def timeline(self) -> Timeline:
        return Timeline(self.per_domain["weight"], self.step_S, self.tokens_S)

    def weights(
        self, *, step: float | None = None, tokens: float | None = None, progress: float | None = None
    ) -> NDArray[np.float64]:
        """Domain weights at one point of a run, interpolated between the recorded ones; before and after, the nearest. In the
        order of `domains`. [K]

        step: optimiser step, from 1. tokens: predicted before the step. progress: share of the run, from 0 to 1.

        Raises:
            ValueError: not exactly one of them is given.
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
        """The same with its domains in another order. Raises: UsageError if they are not the same ones."""
        if set(domains) != set(self.domains):
            ours, theirs = (_few(set(a) - set(b)) for a, b in ((self.domains, domains), (domains, self.domains)))
            raise UsageError(f"the domains differ: only in the schedule {ours}; only on the other side {theirs}")
        order = [self.domains.index(domain) for domain in domains]
        per_domain = {name: values_SK[:, order] for name, values_SK in self.per_domain.items()}
        return replace(self, domains=domains, per_domain=per_domain)

    # Writing

    def write(self, path: Path) -> None:
        """Write atomically: the path holds either what it held or the complete new file.

        Raises:
            UsageError: the path cannot be written.
        """
        table = self.to_arrow()
        try:
            descriptor, partial = tempfile.mkstemp(prefix=partial_prefix(path), dir=path.parent)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}; choose another --out") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                pq.write_table(table, file, compression="zstd", row_group_size=1 << 20)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o666 & ~_umask())
            Path(partial).replace(path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}; choose another --out") from None
        finally:
            Path(partial).unlink(missing_ok=True)

    def to_arrow(self) -> pa.Table:
        steps, num_domains = self.per_domain["weight"].shape
        columns: dict[str, pa.Array] = {
            "step": pa.array(np.repeat(self.step_S, num_domains)),
            "tokens": pa.array(np.repeat(self.tokens_S, num_domains)),
            "domain": pa.DictionaryArray.from_arrays(
                pa.array(np.tile(np.arange(num_domains, dtype=np.int32), steps)), pa.array(self.domains, pa.string())
            ),
        }
        for name in DOMAIN_COLUMNS:
            columns[name] = pa.array(self.per_domain[name].reshape(-1), from_pandas=name in _NULLABLE)
        for name in STEP_COLUMNS:
            columns[name] = pa.array(np.repeat(self.per_step[name], num_domains), from_pandas=name in _NULLABLE)
        info = {"format_version": FORMAT_VERSION, "domains": self.domains} | self.info
        metadata = {"acodm": json.dumps(info, sort_keys=True)}
        if self.policy is not None:
            metadata["acodm.policy"] = base64.b64encode(self.policy).decode()
        return pa.table(columns, schema=SCHEMA).replace_schema_metadata(metadata)

    def to_pandas(self) -> pandas.DataFrame:
        """The tidy table as a dataframe."""
        return self.to_arrow().to_pandas()

    # Reading

    @classmethod
    def load(cls, source: str | Path, columns: Collection[str] | None = None) -> Schedule:
        """A schedule file, or a reference schedule by its name. As `read`."""
        return cls.read(find_schedule(source), columns)

    @classmethod
    def read(cls, path: Path, columns: Collection[str] | None = None) -> Schedule:
        """Read and check a schedule file.

        columns: of DOMAIN_COLUMNS and STEP_COLUMNS, those to read besides the weights; the others are left out. None for all.

        Raises:
            ScheduleError: not there, not a schedule of this format version, truncated, or inconsistent.
        """
        if not path.is_file():
            raise ScheduleError(f"schedule {path} does not exist or is a folder; give a .parquet file")
        wanted = [n for n in (*DOMAIN_COLUMNS, *STEP_COLUMNS) if n == "weight" or columns is None or n in columns]
        try:
            # Without the limit, a crafted footer could ask for any amount of memory.
            limits = {"thrift_string_size_limit": MAX_POLICY_BASE64_BYTES, "thrift_container_size_limit": 10_000_000}
            with pq.ParquetFile(path, page_checksum_verification=True, **limits) as file:
                info = _read_info(file, path)
                _check_columns(file.schema_arrow, path)
                policy = _read_policy(file.schema_arrow.metadata, path)
                return _read_steps(file, wanted, info, policy, path)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise ScheduleError(f"{path} is not a readable Parquet file ({reason}); make or copy it again") from None


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read_info(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    raw = (file.schema_arrow.metadata or {}).get(b"acodm")
    if raw is None:
        raise ScheduleError(f"{path} is Parquet, but not an acodm schedule: it has no acodm metadata")
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


def _check_columns(schema: pa.Schema, path: Path) -> None:
    if set(schema.names) != set(SCHEMA.names) or len(schema.names) != len(SCHEMA.names):
        odd = sorted(set(schema.names) ^ set(SCHEMA.names)) or sorted(schema.names)
        raise ScheduleError(
            f"{path}: missing or unknown columns ({', '.join(odd)}); not a version {FORMAT_VERSION} schedule"
        )
    for expected in SCHEMA:
        found = schema.field(expected.name).type
        if expected.name == "domain":
            if not (pa.types.is_dictionary(found) and pa.types.is_string(found.value_type)):
                raise ScheduleError(f"{path}: column domain has type {found}, expected dictionary of string")
        elif found != expected.type:
            raise ScheduleError(f"{path}: column {expected.name} has type {found}, expected {expected.type}")


def _read_policy(metadata: dict[bytes, bytes], path: Path) -> bytes | None:
    raw = metadata.get(b"acodm.policy")
    if raw is None:
        return None
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        raise ScheduleError(f"{path}: its policy is not valid base64; make or copy the file again") from None


def _read_steps(
    file: pq.ParquetFile, wanted: list[str], info: dict[str, Any], policy: bytes | None, path: Path
) -> Schedule:
    """In blocks of whole steps: of a million steps, only what is kept of each block is ever in memory at once."""
    domains = info.pop("domains")
    num_domains, num_rows = len(domains), file.metadata.num_rows
    if not 0 < num_rows <= MAX_ROWS or num_rows % num_domains:
        raise ScheduleError(
            f"{path}: {num_rows} rows are not a whole number of steps of {num_domains} domains, or more than {MAX_ROWS}"
        )
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
            blocks[name].append(values_BK if name in DOMAIN_COLUMNS else values_BK[:, 0].copy())
    columns = {name: np.concatenate(blocks.pop(name)) for name in list(blocks)}
    step_S, tokens_S = columns["step"], columns["tokens"]
    if step_S[0] < 0 or tokens_S[0] < 0 or (step_S[1:] <= step_S[:-1]).any() or (tokens_S[1:] < tokens_S[:-1]).any():
        raise ScheduleError(f"{path}: its steps or tokens are negative or do not increase")
    return Schedule(
        domains=domains,
        step_S=step_S,
        tokens_S=tokens_S,
        per_domain={name: columns[name] for name in DOMAIN_COLUMNS if name in wanted},
        per_step={name: columns[name] for name in STEP_COLUMNS if name in wanted},
        info=info,
        policy=policy,
    )


def _blocks(file: pq.ParquetFile, columns: list[str], num_domains: int) -> Iterator[pa.Table]:
    """The rows in order, in tables of whole steps."""
    rest: list[pa.Table] = []
    rows = max(1, BLOCK_ROWS // num_domains) * num_domains
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
    """Its chunks, if each is of whole steps; else one."""
    if all(len(chunk) % num_domains == 0 for chunk in column.chunks):
        return column.chunks
    return [column.unify_dictionaries().combine_chunks()]


def _values(column: pa.ChunkedArray, name: str, num_domains: int, path: Path) -> NDArray[Any]:
    """[steps of the block, K]"""
    if column.null_count and name not in _NULLABLE:
        raise ScheduleError(f"{path}: column {name} has missing values")
    if column.null_count:
        column = pc.fill_null(column, float("nan"))
    # Not by to_numpy, which imports pandas.
    parts = [np.from_dlpack(chunk) for chunk in column.chunks]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, num_domains)


def _check_weights(weights_SK: NDArray[np.float32], step_S: NDArray[np.int64], path: Path) -> None:
    finite = np.isfinite(weights_SK) & (weights_SK >= 0)
    sums_S = weights_SK.astype(np.float64).sum(axis=1)
    bad = ~finite.all(axis=1) | ~(np.abs(sums_S - 1) <= SIMPLEX_TOLERANCE)
    if bad.any():
        first = int(step_S[bad.argmax()])
        raise ScheduleError(f"{path}: the weights of step {first} are not on the simplex (finite, not negative, sum 1)")
