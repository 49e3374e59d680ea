"""How long training waits for a checkpoint: one that is written while it goes on, against one that it waits for.

    python -m tests.benchmarks.checkpoint --model pythia-160m --device cpu

One run with checkpoints of both kinds in turn, each followed by the same number of steps. Wait: what the steps wait for it. Round:
the checkpoint and the steps after it, in which a checkpoint that is still being written takes a part of the cores of a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from acodm_cli.mixing.baselines.static import StaticMixer, uniform_weights
from acodm_cli.runs.build import build_run
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks.environment import save
from tests.benchmarks.overhead import random_corpus

KINDS = ("waited for", "in the background")


def measure(options: argparse.Namespace, place: Path) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Seconds by kind; the bytes of a checkpoint."""
    settings = RunSettings(
        model=options.model, steps=10_000, batch=options.batch, seq_len=options.seq_len, lr=1e-3, validate_every=10**6,
        validation_sequences=1, device=options.device, checkpoint_every=options.steps, keep_checkpoints=1,
    )  # fmt: skip
    mixer = StaticMixer(uniform_weights(4))
    run = build_run(settings, corpus=random_corpus(4), mixer=mixer, warn=lambda _: None)
    folder = RunFolder(place / "a.parquet")
    assert run.saves_in_background, "there is no memory for a copy of the state"
    found: dict[str, dict[str, list[float]]] = {kind: {"wait": [], "round": []} for kind in KINDS}
    with folder.locked():
        run.keep_in(folder)
        steps = run.steps()
        for _ in range(options.steps):
            next(steps)
        for pair in range(options.pairs + 1):
            for kind in KINDS if pair % 2 else reversed(KINDS):
                run.saves_in_background = kind == KINDS[1]
                waited, started = run.checkpoint_seconds, time.perf_counter()
                for _ in range(options.steps):
                    event = next(steps)
                found[kind]["round"].append(time.perf_counter() - started)
                found[kind]["wait"].append(run.checkpoint_seconds - waited)
                (written,) = folder.checkpoints()
                step = event.run_step - options.steps
                assert written.name.startswith(f"step-{step:09d}"), "it is still being written; give more --steps"
        size = written.stat().st_size
        del steps
        folder.remove()
    for seconds in found.values():
        for values in seconds.values():
            del values[0]  # the first copy takes new memory
    return found, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pythia-160m")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="between checkpoints")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        seconds, size = measure(options, Path(place))
    medians = {
        kind: {what: statistics.median(values) for what, values in of_kind.items()} for kind, of_kind in seconds.items()
    }
    for kind, median in medians.items():
        print(f"{kind}: {median['wait']:.2f} s of waiting, {median['round']:.2f} s with {options.steps} steps")
    result = {"model": options.model, "bytes": size, "steps": options.steps, "medians": medians, "seconds": seconds}
    save(f"checkpoint_{options.model}", result, options.out)


if __name__ == "__main__":
    main()
