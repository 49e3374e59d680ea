"""`acodm inspect` of a large schedule against reading its columns: the display should cost little more than the file.

    python -m tests.benchmarks.inspect_large --steps 1000000 --domains 22

Each turn starts one process that only reads the columns with pyarrow and one that inspects, and takes seconds and peak memory of both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from acodm_cli.display.facts import COLUMNS
from acodm_cli.schedule.columns import DOMAIN_COLUMNS, STEP_COLUMNS
from acodm_cli.schedule.measures import entropy
from acodm_cli.schedule.schedule import Schedule
from tests.benchmarks.environment import save

READ = "import sys, pyarrow.parquet as pq; pq.read_table(sys.argv[1], columns=sys.argv[2].split(','))"


def make(path: Path, steps: int, num_domains: int) -> None:
    """A random walk of the logits, with losses at every step and a thousand validations."""
    generator = np.random.default_rng(0)
    logits_SK = generator.normal(0, 0.01, (steps, num_domains)).astype(np.float32).cumsum(axis=0)
    weights_SK = np.exp(logits_SK - logits_SK.max(axis=1, keepdims=True))
    weights_SK /= weights_SK.sum(axis=1, keepdims=True)
    per_domain = {name: generator.random((steps, num_domains), dtype=np.float32) for name in ("loss", "reward")}
    per_domain |= {"weight": weights_SK, "samples": np.rint(weights_SK * 1024).astype(np.int32)}
    per_domain["validation_loss"] = np.full((steps, num_domains), np.nan, np.float32)
    per_domain["validation_loss"][:: max(1, steps // 1000)] = 3.0
    per_step = {name: generator.random(steps, dtype=np.float32) for name in STEP_COLUMNS}
    per_step["entropy"] = entropy(weights_SK).astype(np.float32)
    domains = [f"domain {index}" for index in range(num_domains)]
    step_S = np.arange(1, steps + 1)
    assert set(per_domain) == set(DOMAIN_COLUMNS)
    Schedule(domains, step_S, step_S * 2**20, per_domain, per_step, {"batch": 1024, "seq_len": 1024}).write(path)


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds, and GiB at most."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--domains", type=int, default=22)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.parquet"
        # In a process of its own: the peak memory of this one is counted to those that it starts.
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(path, options.steps, options.domains))
        maker.start()
        maker.join()
        columns = ",".join(["step", "tokens", "domain", *COLUMNS])
        read, inspect = [], []
        for _ in range(options.turns):
            read.append(measured([sys.executable, "-c", READ, str(path), columns]))
            inspect.append(measured([sys.executable, "-m", "acodm_cli", "inspect", str(path)]))
        megabytes = path.stat().st_size / 1e6
    seconds = [statistics.median(times for times, _ in runs) for runs in (read, inspect)]
    ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in zip(inspect, read, strict=True))
    memory = [max(gib for _, gib in runs) for runs in (read, inspect)]
    result = {
        "steps": options.steps,
        "domains": options.domains,
        "file_mb": megabytes,
        "read_seconds": seconds[0],
        "inspect_seconds": seconds[1],
        "ratio": ratio,
        "read_gib": memory[0],
        "inspect_gib": memory[1],
    }
    print(json.dumps(result, indent=1))
    save("inspect_large", result, None)


if __name__ == "__main__":
    main()
