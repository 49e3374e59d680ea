"""What guide passes cost: a learning run with them against one without, in one process, block by block in turn.

    python -m tests.benchmarks.guide --model pythia-14m

A block is as many steps as lie between two guide passes, so that each block of the guided run has one. Both train the same
model on the same random tokens with the vocabulary of GPT-NeoX; the guide is held-out text of all domains.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from acodm_cli.corpus.held_out import GUIDE_OF_DOMAINS
from acodm_cli.engine.trainer import Trainer
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.baselines.static import uniform_weights
from acodm_cli.mixing.objective import Objective
from acodm_cli.runs.build import build_run
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks.environment import save
from tests.benchmarks.overhead import random_corpus


def make_trainer(options: argparse.Namespace, guided: bool) -> Trainer:
    settings = RunSettings(
        model=options.model, steps=10_000, batch=options.batch, micro_batch=options.batch, seq_len=options.seq_len, lr=1e-3,
        validate_every=10**6, validation_sequences=1, device=options.device, compile="off",
        guide="domains" if guided else "targets", guide_every=options.every, guide_sequences=options.sequences,
    )  # fmt: skip
    objective = Objective((GUIDE_OF_DOMAINS,), (1.0,)) if guided else Objective()
    mixer = AcOdmLearner(uniform_weights(options.domains), DEFAULT, seed=0, objective=objective)
    trainer = build_run(settings, corpus=random_corpus(options.domains), mixer=mixer, warn=lambda _: None).trainer
    assert (trainer.guide is not None) == guided
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--domains", type=int, default=13)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="guide")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trainers = {guided: make_trainer(options, guided) for guided in (False, True)}
    runs = {guided: trainer.steps() for guided, trainer in trainers.items()}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for block in range(options.blocks + 1):
        for guided in (False, True) if block % 2 else (True, False):
            took = sum(next(runs[guided]).seconds for _ in range(options.every))
            if block:  # the first one warms up
                seconds[guided].append(took)
    ratios = [b / a for a, b in zip(seconds[False], seconds[True], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    guide = trainers[True].guide
    assert guide is not None
    result = {
        "guide_sequences": guide.sequences,
        "time_ratio": statistics.median(ratios),
        "time_ratio_quartiles": [quartiles[0], quartiles[2]],
        "seconds_per_step": statistics.median(seconds[False]) / options.every,
    }
    print(result)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    save(options.name, settings | result, options.out)


if __name__ == "__main__":
    main()
