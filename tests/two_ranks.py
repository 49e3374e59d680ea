"""Trains on two ranks over gloo in ways that have everything on at once, and compares with one process step by step.

    python -m tests.two_ranks --steps 60
    python -m tests.two_ranks --steps 60 --target

Every way has compiled blocks, gradient checkpointing and accumulation, which the one process has not. All draw the tokens of the sketch,
and with --target have guide passes; but then, on so little text, no reward stands out from its noise, and the weights stand still. What is
added up in another order differs by rounding, which training makes larger from step to step.
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


def largest_differences(found: Schedule, expected: Schedule, steps: int) -> dict[str, float]:
    """Up to a step. Of the reward, relative to its mean size."""
    largest: dict[str, np.ndarray] = {}
    names: list[str] = ["train_loss", "target.code.guide_loss"]
    for name in names:
        if name in expected.per_step:
            largest[name] = np.abs(found.per_step[name] - expected.per_step[name])[:steps]
    largest["weight"] = np.abs(found.weights_SK - expected.weights_SK)[:steps]
    theirs_SK = expected.per_domain["reward"][:steps]
    largest["reward"] = np.abs(found.per_domain["reward"][:steps] - theirs_SK) / np.nanmean(np.abs(theirs_SK))
    return {name: float(np.nanmax(values)) for name, values in largest.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--target", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        how = ["proxy-train", "--steps", options.steps, "--alignment-tokens", 64, *prepare(folder)]
        if options.target:
            target = write_target(folder / "code.jsonl", "code")
            how += ["--target", target, "--guide-every", 2, "--guide-sequences", 3]
        finish(*how, "--out", folder / "alone.parquet")
        expected = Schedule.read(folder / "alone.parquet")
        moved = np.abs(expected.weights_SK[-1] - expected.weights_SK[0]).sum()
        print(
            f"one process: train loss {expected.per_step['train_loss'][-1]:.4f}, weights moved by {moved:.3f} (L1)",
            flush=True,
        )
        for way, parallel in WAYS.items():
            out = folder / f"{way}.parquet"
            finish(*how, "--nproc", 2, "--parallel", *parallel, *ON, "--out", out)
            found = Schedule.read(out)
            assert np.array_equal(found.per_domain["samples"], expected.per_domain["samples"])
            for steps in sorted({min(10, options.steps), options.steps // 2, options.steps}):
                differences = largest_differences(found, expected, steps)
                print(
                    f"{way}, up to step {steps}:",
                    ", ".join(f"{name} {value:.1e}" for name, value in differences.items()),
                    flush=True,
                )


if __name__ == "__main__":
    main()
