"""What AC-ODM costs: a learning run against a static one, in one process, step by step in turn.

    python -m tests.benchmarks.overhead --model pythia-14m

Both train the same model on the same random tokens with the vocabulary of GPT-NeoX. Time: the median over interleaved
pairs of steps of learning/static, where a step is everything from asking for the weights to the agent's update. Memory: the
peak of each kind alone, in a process of its own (allocated bytes on CUDA, resident bytes on a CPU).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models

from acodm_cli.alignment import block_sketch, sketch
from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.token_store import DomainStore, TokenStore
from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.engine.device import choose_compute
from acodm_cli.engine.trainer import Trainer
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.baselines.static import StaticMixer, uniform_weights
from acodm_cli.mixing.mixer import Mixer
from acodm_cli.runs.build import build_run
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks.environment import save

VOCABULARY = 50277


def random_corpus(num_domains: int) -> Corpus:
    generator = np.random.default_rng(0)

    def store(tokens: int) -> TokenStore:
        return TokenStore(generator.integers(0, VOCABULARY, tokens, dtype=np.uint16))

    domains = [DomainStore(f"domain_{k}", store(200_000), store(5_000), str(k)) for k in range(num_domains)]
    empty = tokenizers.Tokenizer(models.BPE())
    return Corpus("random", Tokenizer(empty, "random", VOCABULARY, 0, "random"), domains)


def make_trainer(options: argparse.Namespace, kind: str, num_domains: int) -> Trainer:
    settings = RunSettings(
        model=options.model, steps=10_000, batch=options.batch, micro_batch=options.micro_batch or options.batch,
        seq_len=options.seq_len, lr=1e-3, validate_every=10**6, validation_sequences=1, device=options.device,
        dtype=options.dtype, compile=options.compile, alignment=options.alignment, alignment_size=options.size,
        alignment_rotation=options.rotation, alignment_tokens=options.tokens,
    )  # fmt: skip
    prior_K = uniform_weights(num_domains)
    mixer: Mixer = StaticMixer(prior_K) if kind == "static" else AcOdmLearner(prior_K, DEFAULT, seed=0)
    return build_run(settings, corpus=random_corpus(num_domains), mixer=mixer, warn=lambda _: None).trainer


def measure_time(options: argparse.Namespace, num_domains: int) -> dict[str, Any]:
    runs = {kind: make_trainer(options, kind, num_domains).steps() for kind in ("static", "learning")}
    # Past the exploration's first transitions, so that critics and actor learn in every measured step.
    for _ in range(options.warmup):
        for steps in runs.values():
            next(steps)
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for pair in range(options.pairs):
        for kind in ("static", "learning") if pair % 2 else ("learning", "static"):
            seconds[kind].append(next(runs[kind]).seconds)
    ratios = [b / a for a, b in zip(seconds["static"], seconds["learning"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "num_domains": num_domains,
        "time_ratio": statistics.median(ratios),
        "time_ratio_quartiles": [quartiles[0], quartiles[2]],
        "static_seconds": statistics.median(seconds["static"]),
        "learning_seconds": statistics.median(seconds["learning"]),
    }


def time_of_parts(options: argparse.Namespace, num_domains: int, steps: int) -> dict[str, float]:
    """Where the extra time goes: seconds per step in each part that only a learning run has. On a CPU, where calls do not return
    before their work is done. Timed from outside, so the parts hold the clock's own cost."""
    trainer = make_trainer(options, "learning", num_domains)
    running = trainer.steps()
    for _ in range(options.warmup):
        next(running)
    seconds: dict[str, float] = {}

    def timed(owner: Any, name: str, label: str) -> None:
        own = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = own(*arguments, **named)
            seconds[label] = seconds.get(label, 0.0) + (time.perf_counter() - started) / steps
            return result

        setattr(owner, name, call)

    assert trainer.probe is not None
    timed(trainer.mixer, "learn", "agent's update")
    timed(trainer.mixer, "weights", "agent's action")
    timed(trainer.mixer, "observe", "reward and replay buffer")
    timed(trainer.norms, "read", "weight norms")
    timed(trainer.probe, "start", "signs, tokens and groups")
    timed(trainer.probe, "begin", "signs, tokens and groups")
    timed(trainer.probe, "gram", "Gram matrix")
    timed(trainer.probe, "read", "Gram matrix")
    timed(block_sketch.BlockSketch, "__call__", "block sketches, the logits' included")
    timed(sketch, "sums_by_group", "sums of outer products")
    for _ in range(steps):
        next(running)
    return seconds


def can_time_parts(options: argparse.Namespace) -> bool:
    """On a GPU, calls return before their work is done."""
    return options.alignment == "sketch" and choose_compute(options.device, options.dtype).device.type == "cpu"


def peak_bytes(options: argparse.Namespace) -> int:
    """Of this process, after a few steps of one kind."""
    steps = make_trainer(options, options.memory_of, options.domains[0]).steps()
    for _ in range(4):
        next(steps)
    if choose_compute(options.device, options.dtype).device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss: a process starts with that of the one that started it.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measure_memory() -> dict[str, Any]:
    peaks = {}
    for kind in ("static", "learning"):
        command = [sys.executable, "-m", "tests.benchmarks.overhead", *sys.argv[1:], "--memory-of", kind]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[kind] = int(json.loads(done.stdout))
    return {"memory_ratio": peaks["learning"] / peaks["static"], "peak_bytes": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--domains", type=int, nargs="+", default=[13])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--alignment", choices=["sketch", "exact"], default="sketch")
    parser.add_argument("--size", type=int, default=AlignmentSettings.alignment_size)
    parser.add_argument("--rotation", type=int, default=AlignmentSettings.alignment_rotation)
    parser.add_argument("--tokens", type=int, default=AlignmentSettings.alignment_tokens)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", choices=["on", "off"], default="off")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=12)
    parser.add_argument("--memory-of", choices=["static", "learning"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.memory_of:
        print(peak_bytes(options))
        return
    result = {
        "model": options.model,
        "tokens_per_step": options.batch * options.seq_len,
        "compile": options.compile,
        "alignment": {"estimator": options.alignment}
        | {name: getattr(options, name) for name in ("size", "rotation", "tokens")},
        "time": [measure_time(options, num_domains) for num_domains in options.domains],
        "seconds_of_parts": time_of_parts(options, options.domains[0], min(12, options.pairs))
        if can_time_parts(options)
        else None,
        **measure_memory(),
    }
    for row in result["time"]:
        print(f"{row['num_domains']} domains: time ratio {row['time_ratio']:.4f} {row['time_ratio_quartiles']}")
    for part, seconds in (result["seconds_of_parts"] or {}).items():
        print(f"  {part:40} {1000 * seconds:6.2f} ms, {seconds / result['time'][0]['static_seconds']:.2%} of a step")
    print(f"memory ratio {result['memory_ratio']:.4f}")
    save(f"overhead_{options.model}", result, options.out)


if __name__ == "__main__":
    main()
