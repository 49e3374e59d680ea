"""A rank that counts the bytes of the tensors that its steps keep, and compares them with what was predicted.

    RANK=0 WORLD_SIZE=2 … python -m tests.engine.rank_memory '[["ddp", "whole"]]'

Prints, for each way of running, JSON with the predicted and the counted bytes.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from acodm_cli.engine.distributed import Ranks, joined, ranks_asked_for
from acodm_cli.engine.trainer import StepEvent
from acodm_cli.mixing.baselines.static import StaticMixer, uniform_weights
from acodm_cli.mixing.mixer import Mixer
from acodm_cli.runs.build import build_run
from acodm_cli.runs.run import Run
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks import overhead

MARK = "a step that is counted"


def begun(settings: RunSettings, ranks: Ranks, mixer: Mixer) -> tuple[Run, Iterator[StepEvent]]:
    """A run after its first step, which makes the state of the optimiser."""
    run = build_run(settings, corpus=overhead.random_corpus(2), mixer=mixer, ranks=ranks, warn=lambda _: None)
    steps = run.trainer.steps()
    next(steps)
    return run, steps


def live_bytes(profiled: Any) -> list[tuple[int, int]]:
    """What PyTorch's allocator has given and not got back since the profile began: at each mark, and at most from there to the next."""
    events = profiled.profiler.kineto_results.events()
    live, found = 0, []
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == MARK:
            found.append((live, live))
        elif event.name() == "[memory]":
            live += event.nbytes()
            found[-1:] = [(at_mark, max(most, live)) for at_mark, most in found[-1:]]
    return found


def count(settings: RunSettings, ranks: Ranks) -> dict[str, int]:
    """What PyTorch's allocator has given and not got back since before the model was built: the most in a step, of the three
    steps the one in which that is least, because gloo's threads may give their copies back late."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run, steps = begun(settings, ranks, StaticMixer(uniform_weights(2)))
        gc.collect()
        for _ in range(3):
            with record_function(MARK):
                next(steps)
    return {"predicted": run.memory.tensors, "counted": min(most for _, most in live_bytes(profiled))}


def main() -> None:
    overhead.VOCABULARY = 4000
    with joined(ranks_asked_for(), "cpu", minutes=10) as ranks:
        for parallel, accumulate in json.loads(sys.argv[1]):
            settings = RunSettings(
                steps=100, batch=8, micro_batch=1, seq_len=64, lr=1e-3, validate_every=100, validation_sequences=1,
                device="cpu", parallel=parallel, fsdp_accumulate=accumulate,
            )  # fmt: skip
            counted = count(settings, ranks)
            gc.collect()
            if ranks.is_first:
                print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main()
