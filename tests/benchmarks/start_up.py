"""From the command to the first step of pythia-14m, and to `--help`, as ratios to importing torch and transformers.

    python -m tests.benchmarks.start_up

Whole processes, in turns; the corpus is the embedded one, its cache is warm.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.environment import save


def seconds_to_first_step(folder: Path) -> float:
    out = folder / f"{time.monotonic_ns()}.parquet"
    command = [sys.executable, "-m", "acodm_cli", "proxy-train", "--steps", "1000", "--validation-sequences", "1"]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("step 1/"))
    seconds = time.perf_counter() - started
    process.kill()
    process.communicate()
    return seconds


def seconds_of(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"imports": [], "first step": [], "help": []}
    with tempfile.TemporaryDirectory() as folder:
        seconds_to_first_step(Path(folder))
        for _ in range(options.turns):
            seconds["imports"].append(seconds_of("-c", "import torch, transformers"))
            seconds["first step"].append(seconds_to_first_step(Path(folder)))
            seconds["help"].append(seconds_of("-m", "acodm_cli", "--help"))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: medians[name] / medians["imports"] for name in ("first step", "help")}
    print({name: round(value, 3) for name, value in medians.items()}, {n: round(r, 2) for n, r in ratios.items()})
    save("start_up", {"seconds": medians, "ratio_to_imports": ratios}, options.out)


if __name__ == "__main__":
    main()
