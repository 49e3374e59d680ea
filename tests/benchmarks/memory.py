"""Predicted over measured peak memory of a run, for several models, each in a process of its own.

    python -m tests.benchmarks.memory                                    (a CPU, or the GPU where there is one)

Measured: the peak of the process (CPU: resident set; GPU: the allocator's) in three steps of the learner, less what was there
before the model was built.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.engine.device import choose_compute
from acodm_cli.engine.memory import StepPlan, estimate_memory
from acodm_cli.engine.models import model_config
from tests.benchmarks.environment import save
from tests.benchmarks.overhead import make_trainer

MODELS = {"pythia-14m": (16, 256), "pythia-70m": (8, 256), "pythia-160m": (8, 128), "llama-160m": (4, 512)}


def status(name: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def measure(options: argparse.Namespace) -> dict[str, float]:
    compute = choose_compute(options.device, options.dtype)
    config = model_config(options.model, 50304, options.seq_len)
    cuda = compute.device.type == "cuda"
    torch.randn(256, 256, device=compute.device).matmul(torch.randn(256, 256, device=compute.device)).sum().item()
    micro_batch = options.micro_batch or options.batch
    plan = StepPlan(
        micro_batch, options.seq_len, micro_batch < options.batch, compiled=cuda and options.compile == "on",
        whole_logits=options.alignment == "exact",
    )  # fmt: skip
    predicted = estimate_memory(config, plan, compute)
    before = torch.cuda.memory_allocated() if cuda else status("VmRSS")
    trainer = make_trainer(options, "learning", 10)
    assert trainer.probe is not None
    total = predicted.total + trainer.probe.bytes_needed(options.batch)
    steps = trainer.steps()
    for _ in range(3):
        next(steps)
    peak = torch.cuda.max_memory_allocated() if cuda else status("VmHWM")
    return {"predicted_mib": total / 2**20, "measured_mib": (peak - before) / 2**20, "ratio": total / (peak - before)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", choices=["on", "off"], default="off")
    parser.add_argument("--alignment", default="sketch")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rotation", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=AlignmentSettings.alignment_tokens)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.model:
        print(json.dumps(measure(options)))
        return
    results = {}
    for model, (batch, seq_len) in MODELS.items():
        for micro_batch in (batch, batch // 2):
            sizes = ["--batch", batch, "--seq-len", seq_len, "--micro-batch", micro_batch]
            how = ["--model", model, *sizes, "--device", options.device, "--dtype", options.dtype]
            command = [sys.executable, "-m", "tests.benchmarks.memory", *map(str, how)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            label = f"{model} {batch}x{seq_len} in parts of {micro_batch}"
            results[label] = json.loads(output.splitlines()[-1])
            print(label, {name: round(value, 3) for name, value in results[label].items()}, flush=True)
    device = "gpu" if choose_compute(options.device, options.dtype).device.type == "cuda" else "cpu"
    save(f"memory_{device}", {"peaks": results}, options.out)


if __name__ == "__main__":
    main()
