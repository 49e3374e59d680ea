"""What trackers cost: a run that two of them follow against one that nobody follows, in one process, step by step in turn.

    python -m tests.benchmarks.trackers --model pythia-14m

Both train the same model on the same random tokens, with the default agent. A step is everything from asking for the weights to
the agent's update, and of the run that is followed also what the trackers do with its numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from acodm_cli.runs.build import build_run
from acodm_cli.runs.run import Run
from acodm_cli.runs.settings import RunSettings
from acodm_cli.runs.trackers import make_tracker
from acodm_cli.runs.trackers.tracker import Tracked
from tests.benchmarks.environment import save
from tests.benchmarks.overhead import random_corpus


def make_run(options: argparse.Namespace) -> Run:
    settings = RunSettings(
        model=options.model, steps=10_000, batch=options.batch, seq_len=options.seq_len, validate_every=10**6,
        validation_sequences=1, device=options.device, compile="off",
    )  # fmt: skip
    return build_run(settings, corpus=random_corpus(options.domains), warn=lambda _: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--domains", type=int, default=13)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trackers", nargs="+", default=["jsonl", "tensorboard"])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = {kind: make_run(options) for kind in ("alone", "tracked")}
    steps = {kind: run.steps() for kind, run in runs.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    tracking: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = runs["tracked"]
        tracked = Tracked(
            Path(folder) / "a.parquet", run.info(), run.corpus.names, run.settings.tokens_per_step, 0, False, print
        )
        trackers = [make_tracker(name, tracked) for name in options.trackers]
        for pair in range(options.warmup + options.pairs):
            for kind in ("alone", "tracked") if pair % 2 else ("tracked", "alone"):
                started = time.perf_counter()
                event = next(steps[kind])
                trained = time.perf_counter()
                for tracker in trackers if kind == "tracked" else ():
                    tracker.add(event)
                if pair >= options.warmup:
                    seconds[kind].append(time.perf_counter() - started)
                    if kind == "tracked":
                        tracking.append(time.perf_counter() - trained)
        for tracker in trackers:
            tracker.close()
    ratios = [b / a for a, b in zip(seconds["alone"], seconds["tracked"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    result = {
        "model": options.model,
        "domains": options.domains,
        "tokens_per_step": options.batch * options.seq_len,
        "trackers": options.trackers,
        "time_ratio": statistics.median(ratios),
        "time_ratio_quartiles": [quartiles[0], quartiles[2]],
        "seconds_per_step": statistics.median(seconds["alone"]),
        "milliseconds_of_trackers": 1000 * statistics.median(tracking),
    }
    print({name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()})
    save("trackers", result, options.out)


if __name__ == "__main__":
    main()
