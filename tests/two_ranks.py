"""Trains on two ranks over gloo in ways that have everything on at once, and compares with one process step by step.

    python -m tests.two_ranks --steps 60

Every way has compiled blocks, gradient checkpointing, accumulation, guide passes of a target, and a sketch of drawn tokens; the one
process has only the last two. What is added up in another order differs by rounding, which training makes larger from step to step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from acodm_cli.schedule.schedule import Schedule
from tests.chaos import finish, prepare
from tests.runs.test_targeted import write_target

WAYS = {"ddp": ["ddp"], "fsdp": ["fsdp"], "fsdp, sharded": ["fsdp", "--fsdp-accumulate", "sharded"]}
ON = ["--compile", "on", "--activation-checkpointing", "--micro-batch", "2"]
PER_STEP = ("train_loss", "target.code.guide_loss")


def largest_differences(found: Schedule, expected: Schedule, steps: int) -> list[float]:
    """Of the weights, and of PER_STEP, up to a step."""
    ours, theirs = (
        [each.weights_SK.astype(float), *(each.per_step[name].astype(float) for name in PER_STEP)]
        for each in (found, expected)
    )
    return [float(np.nanmax(np.abs(a - b)[:steps])) for a, b in zip(ours, theirs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = write_target(folder / "code.jsonl", "code")
        guided = ["--target", target, "--guide-every", "2", "--guide-sequences", "3", "--alignment-tokens", "64"]
        how = ["proxy-train", "--steps", options.steps, *prepare(folder), *guided]
        finish(*how, "--out", folder / "alone.parquet")
        expected = Schedule.read(folder / "alone.parquet")
        print(f"{'way':16} {'up to step':>10}  largest difference of weights, {', '.join(PER_STEP)}")
        for way, parallel in WAYS.items():
            out = folder / f"{way}.parquet"
            finish(*how, "--nproc", 2, "--parallel", *parallel, *ON, "--out", out)
            found = Schedule.read(out)
            assert np.array_equal(found.per_domain["samples"], expected.per_domain["samples"])
            for steps in sorted({min(10, options.steps), options.steps // 2, options.steps}):
                differences = ", ".join(f"{value:.1e}" for value in largest_differences(found, expected, steps))
                print(f"{way:16} {steps:10}  {differences}", flush=True)


if __name__ == "__main__":
    main()
