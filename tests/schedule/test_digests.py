"""A flipped bit in a schedule file is noticed, or changes nothing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from acodm_cli.errors import ScheduleError
from acodm_cli.schedule import digests
from acodm_cli.schedule.schedule import Schedule


def same(a: Schedule, b: Schedule) -> bool:
    columns = [({**x.per_domain, **x.per_step}, x) for x in (a, b)]
    (first, _), (second, _) = columns
    return (
        a.domains == b.domains
        and a.info == b.info
        and a.policy == b.policy
        and np.array_equal(a.step_S, b.step_S)
        and np.array_equal(a.tokens_S, b.tokens_S)
        and first.keys() == second.keys()
        and all(np.array_equal(first[name], second[name], equal_nan=True) for name in first)
    )


def flips(path: Path, folder: Path, count: int, seed: int) -> dict[str, int]:
    """Flips one bit at a time. Returns how many flips had which outcome."""
    content, whole, generator = path.read_bytes(), Schedule.read(path), random.Random(seed)
    outcomes = {"noticed": 0, "without effect": 0, "silent": 0}
    for _ in range(count):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (folder / "flipped.parquet").write_bytes(changed)
        try:
            read = Schedule.read(folder / "flipped.parquet")
        except ScheduleError:
            outcomes["noticed"] += 1
        else:
            outcomes["without effect" if same(read, whole) else "silent"] += 1
    return outcomes


def test_flipped_bits(proxy: Path, tmp_path: Path) -> None:
    outcomes = flips(proxy, tmp_path, 150, 0)
    assert outcomes["silent"] == 0, outcomes
    assert outcomes["noticed"] > 50, outcomes


@pytest.mark.parametrize("part", ["policy", "description", "column weight"])
def test_what_was_changed_is_named(part: str, proxy: Path, tmp_path: Path) -> None:
    table = pq.read_table(proxy)
    metadata = dict(table.schema.metadata)
    if part == "policy":
        metadata[b"acodm.policy"] = metadata[b"acodm.policy"][:-8] + b"AAAAAAA="
    elif part == "description":
        metadata[b"acodm"] = metadata[b"acodm"].replace(b'"seed": 0', b'"seed": 1')
    else:
        index = table.schema.get_field_index("weight")
        weights = table.column("weight").to_numpy().copy()
        weights[:2] = weights[1::-1]
        table = table.set_column(index, table.schema.field("weight"), [weights])
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    with pytest.raises(ScheduleError, match=f"its {part} is not what was written; copy or make the file again"):
        Schedule.read(tmp_path / "x.parquet")


def test_files_without_digests_are_read(proxy: Path, tmp_path: Path) -> None:
    table = pq.read_table(proxy)
    metadata = {name: value for name, value in table.schema.metadata.items() if name != digests.KEY}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    assert same(Schedule.read(tmp_path / "x.parquet"), Schedule.read(proxy))
    assert Schedule.read(proxy, ["reward"]).per_domain.keys() == {"weight", "reward"}
