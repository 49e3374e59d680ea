"""Reads schedule files and tables of weights of one's own. What is read is bounded and checked before it is used.

Shape letters: S rows, each of a step or of a span of steps; K domains.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from acodm_cli import __version__
from acodm_cli.errors import ScheduleError
from acodm_cli.schedule import curriculum, digests
from acodm_cli.schedule.columns import (
    DOMAIN_COLUMNS,
    FORMAT_VERSION,
    REQUIRED,
    SCHEMA,
    STEP_COLUMNS,
    TARGETS,
    Per,
    Rows,
)
from acodm_cli.schedule.measures import entropy, in_single
from acodm_cli.schedule.pages import expansion_of
from acodm_cli.writing import in_short

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


def read(path: Path, columns: Collection[str] | None = None) -> Rows:
    """Reads and checks a schedule file, or a table of weights; see `Schedule.read`. Raises: ScheduleError"""
    if not path.is_file():
        raise ScheduleError(f"schedule {path} does not exist or is a folder; give a .parquet, .csv or .json file")
    if path.suffix.lower() in (".csv", ".json"):
        try:
            return by_hand(curriculum.read(path))
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
                differs = digests.what_differs(written[digests.KEY], written[b"acodm"], policy, schedule.columns)
                if differs is not None:
                    raise ScheduleError(f"{path}: its {differs} is not what was written; copy or make the file again")
            return schedule
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ScheduleError(
            f"{path} is not a readable Parquet file ({in_short(error, 160)}); make or copy it again"
        ) from None


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
) -> Rows:
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
    return Rows(
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
    if column.null_count and name in REQUIRED:
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


def by_hand(own: curriculum.Curriculum, caveat: str = "") -> Rows:
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
    return Rows(own.domains, step_S, tokens_S, per_domain, per_step, info)


def _nothing_recorded(shape: tuple[int, ...]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
    """Returns the columns of a schedule of so many rows and domains of which nothing is known but that nothing was drawn."""
    per_domain: dict[str, NDArray[Any]] = {
        name: np.zeros(shape, dtype) if name == "samples" else np.full(shape, np.nan, dtype)
        for name, dtype in DOMAIN_COLUMNS.items()
    }
    return per_domain, {name: np.full(shape[0], np.nan, np.float32) for name in STEP_COLUMNS}


def _read_bare(file: pq.ParquetFile, raw: BinaryIO, path: Path) -> Rows:
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
    recorded = names >= REQUIRED
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
        return by_hand(_drawn_up(values, kind, domain_N, domains), _LOST)
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


def _recorded(values: dict[str, NDArray[Any]], domain_N: NDArray[Any], domains: list[str], path: Path) -> Rows:
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
    return Rows(domains, whole_S, tokens_S, per_domain, per_step, info)
