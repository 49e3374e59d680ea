"""Our engine against Hugging Face `Trainer` and a minimal hand-written loop, in one process, in turns.

    python -m tests.benchmarks.throughput --model pythia-14m          (needs accelerate for Trainer)

The same architecture, batch, sequence length, precision, AdamW and gradient clipping, on the same random tokens, with a static
mixture on our side. Each turn runs a few steps of each; a ratio is the median over turns of their tokens per second.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.engine.device import Compute, choose_compute
from acodm_cli.engine.estimate import flops_per_token, peak_flops_per_second
from acodm_cli.engine.models import build_model, model_config
from tests.benchmarks.environment import save
from tests.benchmarks.overhead import VOCABULARY, make_trainer

# A run of some steps, which returns the seconds of each.
Runner = Callable[[int], list[float]]


def matmul_flops_per_second(compute: Compute, size: int = 1024) -> float:
    """Measures the FLOPs per second of matrix products in the run's precision: the median of a few square ones."""
    left = torch.randn(size, size, device=compute.device, dtype=compute.dtype)
    right = torch.randn_like(left)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        product = left @ right
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        seconds.append(time.perf_counter() - started)
    del product
    return 2 * size**3 / sorted(seconds)[len(seconds) // 2]


def random_batches(options: argparse.Namespace) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(VOCABULARY, (options.batch, options.seq_len), generator=generator)


def fresh_model(options: argparse.Namespace, compute: Compute) -> nn.Module:
    return build_model(model_config(options.model, 50304, options.seq_len), 0, compute.device)


def wait(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.synchronize()


def ours(options: argparse.Namespace, compute: Compute) -> Runner:
    of_probe = {
        "alignment": "sketch",
        "size": 64,
        "rotation": 1,
        "tokens": AlignmentSettings.alignment_tokens,
    }  # there is none in a static run
    steps = make_trainer(argparse.Namespace(**vars(options), **of_probe), "static", 2).steps()

    def run(count: int) -> list[float]:
        return [event.seconds for event in itertools.islice(steps, count)]

    return run


def by_hand(options: argparse.Namespace, compute: Compute) -> Runner:
    """What one writes in ten minutes: model(labels=…), backward, clip, fused AdamW, cosine schedule."""
    model = fresh_model(options, compute)
    if options.compile == "on":
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 100, 10_000)
    batches = random_batches(options)

    def run(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            tokens_BT = next(batches).to(compute.device)
            with compute.autocast():
                loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            wait(compute)
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


class StepTimes(transformers.TrainerCallback):
    """Seconds from the end of one step to the end of the next: start and end of `train()` are not counted."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        wait(self.compute)
        self.ends.append(time.perf_counter())


class RandomTokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, options: argparse.Namespace) -> None:
        self.rows = torch.cat(list(itertools.islice(random_batches(options), 64)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def by_trainer(options: argparse.Namespace, compute: Compute) -> Runner:
    model = fresh_model(options, compute)
    data = RandomTokens(options)

    def run(count: int) -> list[float]:
        times = StepTimes(compute)
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder, per_device_train_batch_size=options.batch, max_steps=count + 1, learning_rate=1e-3,
                adam_beta2=0.95, weight_decay=0.1, max_grad_norm=1.0, lr_scheduler_type="cosine", optim="adamw_torch_fused",
                bf16=compute.dtype == torch.bfloat16, use_cpu=compute.device.type == "cpu", report_to="none", torch_compile=options.compile == "on",
                save_strategy="no", logging_strategy="no", disable_tqdm=True,
            )  # fmt: skip
            transformers.Trainer(model, arguments, train_dataset=data, callbacks=[times]).train()
        return [b - a for a, b in itertools.pairwise(times.ends)]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pythia-14m")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", choices=["on", "off"], default="off")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps-per-turn", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    compute = choose_compute(options.device, options.dtype)
    runners = {
        "ours": ours(options, compute),
        "Trainer": by_trainer(options, compute),
        "by hand": by_hand(options, compute),
    }
    for run in runners.values():
        run(2)
    tokens = options.batch * options.seq_len
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(options.turns):
        order = list(runners) if turn % 2 else list(reversed(runners))
        for name in order:
            rates[name].append(tokens / statistics.median(runners[name](options.steps_per_turn)))
        print({name: round(values[-1]) for name, values in rates.items()}, flush=True)
    ratios = {}
    for name in ("Trainer", "by hand"):
        values = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
        quartiles = statistics.quantiles(values, n=4)
        ratios[name] = {"median": statistics.median(values), "quartiles": [quartiles[0], quartiles[2]]}
        print(f"ours / {name}: {ratios[name]['median']:.3f} ({quartiles[0]:.3f} to {quartiles[2]:.3f})")
    peak = matmul_flops_per_second(compute, 4096 if compute.device.type == "cuda" else 2048)
    achieved = statistics.median(rates["ours"]) * flops_per_token(fresh_model(options, compute), options.seq_len)
    print(f"ours: {achieved / peak:.1%} of the measured matrix-multiply peak, {peak / 1e12:.3f} TFLOP/s")
    result = {
        "model": options.model,
        "compile": options.compile,
        "model_flops_per_second": achieved,
        "share_of_measured_matmul_peak": achieved / peak,
        "measured_matmul_peak": peak,
        "vendor_peak": peak_flops_per_second(compute),
        "tokens_per_step": tokens,
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio_of_ours_to": ratios,
    }
    save(f"throughput_{options.model}", result, options.out)


if __name__ == "__main__":
    main()
