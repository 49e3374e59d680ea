"""Schedule files that are small and ask for much: 20 of 5 kinds. `python -m tests.bombs` makes each, inspects it, and prints what
became of it: the exit code, and how much more memory that took than an ordinary file does.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from acodm_cli.schedule.columns import SCHEMA

DOMAINS = ["code", "prose"]
MOST_MORE = 200  # MB


def ordinary(steps: int = 10, first: int = 1, domains: list[str] = DOMAINS, info: str | None = None) -> pa.Table:
    """A schedule without anything wrong."""
    rows, number = steps * len(domains), len(domains)
    step = np.repeat(np.arange(first, first + steps), number)
    columns = {
        name: pa.array(np.full(rows, 0.5, np.float32))
        for name in SCHEMA.names
        if SCHEMA.field(name).type == pa.float32()
    }
    columns |= {"step": pa.array(step), "tokens": pa.array(step * 100), "samples": pa.array(np.ones(rows, np.int32))}
    columns["weight"] = pa.array(np.full(rows, 1 / number, np.float32))
    indices = pa.array(np.tile(np.arange(number, dtype=np.int32), steps))
    columns["domain"] = pa.DictionaryArray.from_arrays(indices, pa.array(domains))
    table = pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
    return table.replace_schema_metadata({"acodm": info or json.dumps({"format_version": 1, "domains": domains})})


def many_rows(path: Path, size: int) -> None:
    """Constant columns of many rows."""
    block = 2**20
    counted = {"step": "DELTA_BINARY_PACKED", "tokens": "DELTA_BINARY_PACKED"}
    others = [name for name in SCHEMA.names if name not in counted]
    with pq.ParquetWriter(
        path, ordinary().schema, compression="zstd", use_dictionary=others, column_encoding=counted
    ) as writer:
        for number in range(size):
            writer.write_table(ordinary(block // 2, 1 + number * block // 2), row_group_size=block)


def long_dictionary(path: Path, size: int) -> None:
    """A name of many megabytes, which compresses to nothing."""
    names = ["a" * (size * 2**20), "b"]
    table = ordinary(domains=names, info=json.dumps({"format_version": 1, "domains": DOMAINS}))
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**31 - 1, write_statistics=False)


def false_header(path: Path, size: int) -> None:
    """A page that says it is larger than it is."""
    pq.write_table(
        ordinary(2**19),
        path,
        compression="zstd",
        use_dictionary=["domain"],
        data_page_size=2**26,
        max_rows_per_page=2**26,
    )
    content, metadata, patched = path.read_bytes(), pq.read_metadata(path), 0
    for number in range(metadata.num_columns):
        start = metadata.row_group(0).column(number).data_page_offset
        size_at = start + 3  # after the page's type, and the tag of its size
        if content[start:size_at] == b"\x15\x00\x15" and content[size_at + 3] < 128 <= min(
            content[size_at : size_at + 3]
        ):
            content = content[:size_at] + varint(2 * size * 2**20) + content[size_at + 4 :]
            patched += 1
    assert patched
    path.write_bytes(content)


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def many_groups(path: Path, size: int) -> None:
    """A row group per step."""
    with pq.ParquetWriter(path, ordinary().schema) as writer:
        writer.write_table(ordinary(size * 1000), row_group_size=2)


def large_description(path: Path, size: int) -> None:
    """Metadata that are nested, or many."""
    inside = {
        0: "[" * 2_000_000,
        1: '{"a":' * 900 + "1" + "}" * 900,
        2: json.dumps([[]] * 2_500_000),
        3: json.dumps(["x" * 9] * 10**6),
    }
    info = json.dumps({"format_version": 1, "domains": DOMAINS, "model": "@"}).replace('"@"', inside[size])
    pq.write_table(ordinary(info=info), path)


KINDS: dict[Callable[[Path, int], None], tuple[int, ...]] = {
    many_rows: (20, 40, 63, 80),
    long_dictionary: (20, 100, 400, 1000),
    false_header: (17, 32, 63, 127),
    many_groups: (5, 15, 25, 40),
    large_description: (0, 1, 2, 3),
}


def inspected(path: Path) -> tuple[int, str, int, float]:
    """Returns (exit code, last line said, peak memory in MB, seconds) of `acodm inspect`."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-m", "acodm_cli", "inspect", str(path)], stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        lines = said.read().splitlines()
    error = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
    return os.waitstatus_to_exitcode(status), error, usage.ru_maxrss // 1024, time.monotonic() - started


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(ordinary(), path)
        code, _, usual, _ = inspected(path)
        assert code == 0
        for make, sizes in KINDS.items():
            for size in sizes:
                # In another process, because the peak of this one would be counted as its children's.
                call = f"import pathlib, tests.bombs; tests.bombs.{make.__name__}(pathlib.Path({str(path)!r}), {size})"
                subprocess.run([sys.executable, "-c", call], check=True)
                code, said, peak, seconds = inspected(path)
                ok = code in (0, 3) and peak - usual < MOST_MORE + 2 * path.stat().st_size // 2**20
                held += ok
                print(
                    f"{'held' if ok else 'LOST'}  {make.__name__} {size}: {path.stat().st_size:,} bytes, exit {code}, "
                    f"{peak - usual:+} MB, {seconds:.1f} s: {said.replace(folder, '')[:110]}"
                )
    print(f"{held} of {sum(map(len, KINDS.values()))} held")


if __name__ == "__main__":
    main()
