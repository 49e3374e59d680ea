"""Schedules come from strangers: whatever is done to a file, it is read correctly or refused with one line.

python -m tests.schedule.test_fuzz 20000    (more files than the test takes)
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import multiprocessing
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from acodm_cli.cli import main
from acodm_cli.errors import ScheduleError
from acodm_cli.mixing.acodm.agents import make_agent
from acodm_cli.mixing.acodm.policy import dump_policy, load_policy
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.acodm.state import state_size
from acodm_cli.schedule import digests
from acodm_cli.schedule.columns import SCHEMA
from acodm_cli.schedule.schedule import Schedule
from tests.schedule.test_schedule import make_schedule

FILES = 600
MOST_SECONDS_PER_FILE = 20
MOST_MEMORY = 2**30
Generator = np.random.Generator


def seed_file(path: Path) -> None:
    """A real schedule with a real policy."""
    domains = make_schedule().domains
    agent = make_agent(state_size(len(domains), DEFAULT.depths), torch.full((3,), 1 / 3), DEFAULT, 0)
    make_schedule(steps=40, policy=dump_policy(agent, domains)).write(path)
    # With digests, hardly any change would get further than to them.
    table = pq.read_table(path)
    metadata = {name: value for name, value in table.schema.metadata.items() if name != digests.KEY}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def flip_bytes(path: Path, generator: Generator) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(int(generator.integers(1, 9))):
        data[generator.integers(len(data))] = generator.integers(256)
    path.write_bytes(data)


def flip_footer(path: Path, generator: Generator) -> None:
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    for _ in range(int(generator.integers(1, 5))):
        data[-8 - int(generator.integers(length))] = generator.integers(256)
    path.write_bytes(data)


def cut(path: Path, generator: Generator) -> None:
    data = path.read_bytes()
    first, last = sorted(generator.integers(len(data), size=2))
    path.write_bytes(data[:first] + data[last:])


def drop_column(path: Path, generator: Generator) -> None:
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([str(generator.choice(table.column_names))]), path)


def change_type(path: Path, generator: Generator) -> None:
    table = pq.read_table(path)
    index = int(generator.integers(table.num_columns))
    types = [pa.float64(), pa.int8(), pa.string(), pa.bool_(), pa.list_(pa.float32()), pa.large_string()]
    kind = types[generator.integers(len(types))]
    values: list[Any] = [None] * table.num_rows
    pq.write_table(table.set_column(index, table.column_names[index], pa.array(values, kind)), path)


def change_values(path: Path, generator: Generator) -> None:
    table = pq.read_table(path)
    name = str(generator.choice([n for n in SCHEMA.names if n != "domain"]))
    column = table.column(name)
    values = column.to_numpy().copy()
    worst = [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e38] if values.dtype.kind == "f" else [-1, 0, 2**31 - 1, -(2**31)]
    rows = generator.integers(len(values), size=generator.integers(1, len(values)))
    values[rows] = generator.choice(worst)
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, SCHEMA.field(name), pa.array(values, column.type)), path)


def change_rows(path: Path, generator: Generator) -> None:
    table = pq.read_table(path)
    rows = generator.integers(table.num_rows, size=generator.integers(0, table.num_rows + 1))
    pq.write_table(table.take(pa.array(rows)), path)


def change_metadata(path: Path, generator: Generator) -> None:
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    info = json.loads(metadata[b"acodm"])
    values: list[Any] = [
        None,
        -1,
        10**400,
        1e308,
        "",
        "\x1b[31m\n",
        [],
        {},
        [[]] * 50,
        {"name": {}},
        "x" * 100_000,
        True,
    ]
    if generator.random() < 0.2:
        metadata[b"acodm"] = bytes(generator.integers(256, size=50, dtype=np.uint8))
    elif generator.random() < 0.1:
        metadata[b"acodm"] = b'{"a":' * 100_000
    else:
        keys = [*info, "corpus", "tokenizer", "mixer", "composed", "seq_len", "batch", "parameters", "title", "seeds"]
        for key in generator.choice(keys, size=2):
            info[str(key)] = values[generator.integers(len(values))]
        metadata[b"acodm"] = json.dumps(info).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)


def change_policy(path: Path, generator: Generator) -> None:
    """Above all its safetensors header: lengths, offsets and shapes that do not fit."""
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    data = bytearray(base64.b64decode(metadata[b"acodm.policy"]))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kind = generator.integers(4)
    if kind == 0:
        data[:8] = int(generator.choice([0, 1, 2**62, 2**63, len(data)])).to_bytes(8, "little")
    elif kind == 1:
        name = str(generator.choice([n for n in header if n != "__metadata__"]))
        changes = [
            ("shape", [2**40, 2**40]),
            ("shape", [-1]),
            ("data_offsets", [0, 2**60]),
            ("dtype", "F1024"),
            ("shape", 3),
        ]
        key, value = changes[generator.integers(len(changes))]
        header[name][key] = value
        text = json.dumps(header).encode()
        data = bytearray(len(text).to_bytes(8, "little") + text + data[8 + length :])
    else:
        for _ in range(4):
            data[generator.integers(len(data) if kind == 2 else 8 + length)] = generator.integers(256)
    metadata[b"acodm.policy"] = base64.b64encode(data)
    pq.write_table(table.replace_schema_metadata(metadata), path)


MUTATIONS = [
    flip_bytes, flip_footer, cut, drop_column, change_type, change_values, change_rows, change_metadata, change_policy
]  # fmt: skip


def outcome(path: Path, arguments: list[str]) -> str:
    """What `acodm inspect` says of it: read, or refused; and that it says it as it should."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["inspect", str(path), *arguments])
        except SystemExit as error:
            code = error.code
    if code == 0:
        assert out.getvalue()
        assert "\x1b" not in out.getvalue()
        return "read"
    assert code in (2, 3), (code, err.getvalue())
    assert err.getvalue().startswith("error: ")
    assert err.getvalue().count("\n") == 1
    assert len(err.getvalue()) < 4000
    return "refused"


def fuzz(folder: Path, first: int, count: int) -> None:
    """In a process of its own, whose memory is limited: what asks for more dies of it."""
    seed = folder / "seed.parquet"
    seed_file(seed)
    whole, path = seed.read_bytes(), folder / f"{first}.parquet"
    forms = [
        ["--json"],
        ["--plot", "reward"],
        ["--plot", "energy"],
        ["--csv"],
        ["--average"],
        ["--plain", "--smooth", "5"],
        [],
    ]
    outcomes: Counter[str] = Counter()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        path.write_bytes(whole)
        with contextlib.suppress(pa.ArrowException, OSError, OverflowError):
            MUTATIONS[number % len(MUTATIONS)](path, generator)
        said = outcome(path, forms[number % len(forms)])
        outcomes[said] += 1
        if said == "read":
            schedule = Schedule.read(path)
            np.testing.assert_allclose(schedule.weights_SK.sum(axis=1), 1, atol=1e-3)
            if schedule.policy is not None:
                with contextlib.suppress(ScheduleError):
                    load_policy(schedule.policy, schedule.domains, DEFAULT)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) * 1024 < MOST_MEMORY
    print(dict(outcomes))


def exit_code(folder: Path, files: int) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=fuzz, args=(folder, 0, files))
    process.start()
    process.join(files * MOST_SECONDS_PER_FILE)
    return process.exitcode


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    assert exit_code(tmp_path, FILES) == 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.exit(exit_code(Path(place), int(sys.argv[1])))
