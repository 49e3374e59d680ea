from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acodm_cli.errors import ScheduleError
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, STEP_COLUMNS
from acodm_cli.schedule.measures import in_single
from acodm_cli.schedule.schedule import Schedule


def make_schedule(steps: int = 6, policy: bytes | None = b"policy bytes") -> Schedule:
    generator = np.random.default_rng(0)
    per_domain = {name: generator.random((steps, 3)).astype(dtype) for name, dtype in DOMAIN_COLUMNS.items()}
    per_domain["weight"] = in_single(generator.dirichlet(np.ones(3), steps))
    per_domain["samples"] = np.full((steps, 3), 4, dtype=np.int32)
    per_domain["validation_loss"][1:] = np.nan
    per_domain["loss"][2, 1] = np.nan
    return Schedule(
        domains=["web", "code", "books"],
        step_S=np.arange(1, steps + 1),
        tokens_S=np.arange(1, steps + 1) * 192,
        per_domain=per_domain,
        per_step={name: generator.random(steps).astype(np.float32) for name in STEP_COLUMNS},
        info={"model": "pythia-14m", "seed": 0},
        policy=policy,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "s.parquet"
    make_schedule().write(path)
    return path


def rewrite(path: Path, table: pa.Table | None = None, **metadata: Any) -> None:
    """Write the file again with another table or metadata."""
    table = pq.read_table(path) if table is None else table
    current = {**(pq.read_schema(path).metadata or {})}
    current |= {name.replace("_", ".").encode(): value for name, value in metadata.items() if value is not None}
    for name, value in metadata.items():
        if value is None:
            del current[name.encode()]
    pq.write_table(table.replace_schema_metadata(current), path)


def with_column(path: Path, name: str, values: pa.Array) -> pa.Table:
    table = pq.read_table(path)
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_round_trip(path: Path) -> None:
    written, read = make_schedule(), Schedule.read(path)
    assert read.domains == written.domains
    assert read.info == written.info
    assert read.policy == written.policy
    for name in DOMAIN_COLUMNS:
        assert np.array_equal(read.per_domain[name], written.per_domain[name], equal_nan=name != "samples")
    for name in STEP_COLUMNS:
        assert np.array_equal(read.per_step[name], written.per_step[name])


def test_three_readers_agree(path: Path) -> None:
    expected = make_schedule().per_domain["weight"]
    pandas_wide = pd.read_parquet(path).pivot(index="step", columns="domain", values="weight")
    assert np.array_equal(pandas_wide[["web", "code", "books"]].to_numpy(), expected)
    polars_wide = pl.read_parquet(path).pivot(on="domain", index="step", values="weight")
    assert np.array_equal(polars_wide.select("web", "code", "books").to_numpy(), expected)
    query = f"pivot (select step, domain::varchar as domain, weight from '{path}') on domain using first(weight) order by step"
    duckdb_wide = duckdb.connect().execute(query).df()
    assert np.array_equal(duckdb_wide[["web", "code", "books"]].to_numpy(), expected)
    # A domain that was not drawn has no loss: null, not zero and not NaN.
    assert pl.read_parquet(path)["loss"].null_count() == 1


def test_writing_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_schedule().write(tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(*arguments: Any, **options: Any) -> None:
        arguments[1].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_schedule(9).write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        make_schedule().write(path.parent / "none" / "s.parquet")


def test_not_parquet_truncated_or_absent(path: Path) -> None:
    data = path.read_bytes()
    for content in (b"", b"hello", data[:-1], data[: len(data) // 2], data[: len(data) // 2] + data[-100:]):
        path.write_bytes(content)
        with pytest.raises(ScheduleError, match="not a readable Parquet file"):
            Schedule.read(path)
    with pytest.raises(ScheduleError, match="does not exist"):
        Schedule.read(path.parent / "none.parquet")
    with pytest.raises(ScheduleError, match="does not exist or is a folder"):
        Schedule.read(path.parent)


def metadata(path: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(path).metadata[b"acodm"])


def test_metadata_is_checked(path: Path) -> None:
    info = metadata(path)
    for change, message in (
        ({"format_version": 2}, "format version 2, this acodm reads version 1"),
        ({"format_version": None}, "format version None"),
        ({"domains": "web"}, "distinct domain names"),
        ({"domains": ["web", "web", "code"]}, "distinct domain names"),
        ({"domains": ["web", "code"]}, "whole number of steps|in order"),
        ({"domains": ["code", "web", "books"]}, "in order"),
    ):
        rewrite(path, acodm=json.dumps(info | change))
        with pytest.raises(ScheduleError, match=message):
            Schedule.read(path)
    for text in ("not json", "[1]", "[" * 100_000):
        rewrite(path, acodm=text)
        with pytest.raises(ScheduleError, match="not valid JSON"):
            Schedule.read(path)
    rewrite(path, acodm=json.dumps(info | {"note": "x" * 9_000_000}))
    with pytest.raises(ScheduleError, match="larger than 8 MiB"):
        Schedule.read(path)
    pq.write_table(pq.read_table(path).select(["step", "weight"]).replace_schema_metadata(), path)
    with pytest.raises(ScheduleError, match="not an acodm schedule"):
        Schedule.read(path)


def test_policy_must_be_base64(path: Path) -> None:
    rewrite(path, acodm_policy="***")
    with pytest.raises(ScheduleError, match="not valid base64"):
        Schedule.read(path)


def test_columns_are_checked(path: Path) -> None:
    original = path.read_bytes()
    table = pq.read_table(path)
    rows = table.num_rows
    weights = table["weight"].to_numpy()
    for changed, message in (
        (table.drop_columns(["reward"]), "missing columns .reward"),
        (table.append_column("extra", pa.array(range(rows))), "unknown column .extra. of type int64"),
        (with_column(path, "weight", pa.array(weights.astype(np.float64))), "has type double, expected float"),
        (with_column(path, "domain", pa.array(["web"] * rows)), "expected dictionary"),
        (with_column(path, "weight", pa.array(-weights)), "step 1 are not on the simplex"),
        (with_column(path, "weight", pa.array(weights * np.float32(np.nan))), "not on the simplex"),
        (with_column(path, "weight", pa.array(weights * np.float32(2))), "not on the simplex"),
        (with_column(path, "weight", pa.array([None] * rows, pa.float32())), "missing values"),
        (with_column(path, "step", pa.array(list(range(rows)))), "not grouped by step"),
        (with_column(path, "step", pa.array([1] * rows)), "do not increase"),
        (table.slice(0, 4), "whole number of steps"),
        (table.slice(0, 0), "whole number of steps"),
    ):
        path.write_bytes(original)
        rewrite(path, changed)
        with pytest.raises(ScheduleError, match=message):
            Schedule.read(path)


def test_epochs_by_hand() -> None:
    """4 sequences per domain and step, of 8, 3 and 1000 that there are."""
    schedule = make_schedule(6)
    assert schedule.epochs() is schedule.epochs_SK() is schedule.steps_beyond(1) is None
    sized = replace(schedule, info={"corpus": {"sequences": {"web": 8, "code": 3, "books": 1000}}})
    epochs_K, epochs_SK = sized.epochs(), sized.epochs_SK()
    assert epochs_K is not None
    assert epochs_SK is not None
    assert epochs_K == pytest.approx([3, 8, 0.024])
    assert epochs_SK[:, 0] == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])
    # After step 2, web has been seen once; code has been by its third sequence, in step 1.
    assert sized.steps_beyond(1) == [3, 1, None]
    assert sized.steps_beyond(4) == [None, 4, None]
    # Two rows of three steps: web is through after a share of 8/12 of the first, that is with its second step.
    rows = replace(sized, step_S=np.array([3, 6]), per_domain={"samples": np.full((2, 3), 12, dtype=np.int32)})
    assert rows.steps_beyond(1) == [3, 1, None]
