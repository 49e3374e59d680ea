"""Everything that is to be known of a GPU, in one command of about ten minutes: is it right there, and what does it cost?

    python -m tests.benchmarks.gpu                    (on one GPU)
    python -m tests.benchmarks.gpu --tiny --device cpu    (the same parts, small, to see that they work)

Each part is a process of its own with a time limit, so that the others survive its failure:

    correctness   the same steps on the CPU and on the GPU: fp32, bf16, compiled, with gradient checkpointing, in micro-batches
    overhead      learning against static, interleaved: pythia-160m, 410m and 1b at sequence 1024, bf16, compiled
    throughput    against Trainer and a loop by hand, with the share of the card's peak (MFU)
    memory        predicted over measured peak
    commands      a short proxy-train, and apply with what it has learned

Written are a table and results/gpu.json, after each part, with the end of what a failed one printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.engine.device import choose_compute
from tests.benchmarks.environment import save
from tests.benchmarks.overhead import make_trainer
from tests.conftest import write_corpus, write_tokenizer

# The largest difference of a training loss in nats, and of other numbers as a share, of the first steps on two devices.
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
COMPARED = ("train_loss", "gradient_norm", "self_energy", "interaction_energy")
SITUATIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "micro-batches": {"micro_batch": 4},
    "exact": {"alignment": "exact"},
    "compiled": {"compile": "on"},
    "bf16": {"dtype": "bf16"},
    "bf16, compiled": {"dtype": "bf16", "compile": "on"},
}
TAIL = 1500
# A machine without a GPU may be busy, too.
TINY_SECONDS = 600


@dataclass(frozen=True)
class Part:
    """A command of a module of this folder, or of acodm. seconds: its time limit."""

    name: str
    module: str
    arguments: list[str]
    seconds: int


def parts(tiny: bool, device: str) -> list[Part]:
    of_device = ["--device", device]
    this = Part(
        "correctness",
        "tests.benchmarks.gpu",
        ["--part", "correctness", *(["--tiny"] if tiny else []), *of_device],
        TINY_SECONDS if tiny else 150,
    )
    if tiny:
        shape = ["--model", "pythia-14m", "--batch", "4", "--seq-len", "32", *of_device]
        return [
            this,
            Part(
                "overhead pythia-14m",
                "tests.benchmarks.overhead",
                [*shape, "--pairs", "2", "--warmup", "1"],
                TINY_SECONDS,
            ),
            Part(
                "throughput pythia-14m",
                "tests.benchmarks.throughput",
                [*shape, "--turns", "2", "--steps-per-turn", "1"],
                TINY_SECONDS,
            ),
            Part("memory pythia-14m", "tests.benchmarks.memory", shape, TINY_SECONDS),
            Part("commands", "tests.benchmarks.gpu", ["--part", "commands", "--tiny", *of_device], TINY_SECONDS),
        ]
    how = ["--seq-len", "1024", "--dtype", "bf16", "--compile", "on", *of_device]
    found = [this]
    for model, batch, pairs in (("pythia-160m", 32, 40), ("pythia-410m", 16, 30), ("pythia-1b", 16, 20)):
        shape = ["--model", model, "--batch", str(batch), *how]
        found.append(
            Part(
                f"overhead {model}",
                "tests.benchmarks.overhead",
                [*shape, "--domains", "22", "--pairs", str(pairs)],
                110,
            )
        )
        if model != "pythia-410m":
            found.append(Part(f"throughput {model}", "tests.benchmarks.throughput", [*shape, "--turns", "4"], 110))
        found.append(Part(f"memory {model}", "tests.benchmarks.memory", shape, 60))
    return [*found, Part("commands", "tests.benchmarks.gpu", ["--part", "commands", *of_device], 120)]


# Parts of this module


def first_steps(device: str, tiny: bool, situation: dict[str, Any], steps: int) -> list[list[float]]:
    """The numbers of COMPARED of a learner's first steps."""
    options = argparse.Namespace(
        **{
            "model": "pythia-14m", "batch": 8, "micro_batch": None, "seq_len": 32 if tiny else 256, "device": device,
            "dtype": "fp32", "compile": "off", "alignment": "sketch", "size": 64, "rotation": 1, "tokens": AlignmentSettings.alignment_tokens,
            **situation,
        }
    )  # fmt: skip
    running = make_trainer(options, "learning", 4).steps()
    return [[float(getattr(event, name)) for name in COMPARED] for event in (next(running) for _ in range(steps))]


def correctness(device: str, tiny: bool) -> dict[str, Any]:
    """Each situation on the device against fp32 on the CPU. Products of fp32 are not rounded to TF32 here."""
    torch.backends.cuda.matmul.allow_tf32 = False
    steps = 2 if tiny else 5
    found: dict[str, Any] = {}
    for alignment in ("sketch", "exact"):
        truth = torch.tensor(first_steps("cpu", tiny, {"alignment": alignment}, steps), dtype=torch.float64)
        for name, situation in SITUATIONS.items():
            if situation.get("alignment", "sketch") != alignment or (tiny and "compiled" in name):
                continue
            there = torch.tensor(first_steps(device, tiny, situation, steps), dtype=torch.float64)
            difference = (there - truth).abs() / truth.abs().clamp(min=1e-3)
            tolerance = TOLERANCES["bf16" if "bf16" in name else "fp32"]
            # The two energies are small differences of large sums.
            right = bool(difference[:, :2].max() <= tolerance and difference[:, 2:].max() <= 20 * tolerance)
            largest = dict(zip(COMPARED, difference.amax(dim=0).tolist(), strict=True))
            found[name] = {"right": right, "largest_difference": largest}
    return {"right": all(each["right"] for each in found.values()), "situations": found}


def commands(device: str, tiny: bool) -> dict[str, Any]:
    """proxy-train and apply on the embedded corpus, as a user starts them; if tiny, on a generated one."""
    small, large, steps, shape = ("pythia-14m", "pythia-14m", "6", ["8", "32"]) if tiny else ("pythia-160m", "pythia-410m", "60", ["32", "512"])  # fmt: skip
    how = [
        "--steps",
        steps,
        "--batch",
        shape[0],
        "--seq-len",
        shape[1],
        "--device",
        device,
        "--validation-sequences",
        "4",
    ]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        proxy, target = Path(folder) / "proxy.parquet", Path(folder) / "target.parquet"
        if tiny:
            data, tokenizer = write_corpus(Path(folder) / "corpus"), write_tokenizer(Path(folder) / "tokenizer.json")
            how += ["--data", str(data), "--tokenizer", str(tokenizer), "--cache-dir", str(Path(folder) / "cache")]
        for name, words in {
            "proxy-train": ["proxy-train", "--model", small, "--out", str(proxy)],
            "apply": ["apply", "--schedule", str(proxy), "--model", large, "--out", str(target)],
        }.items():
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "acodm_cli", *words, *how], capture_output=True, text=True, check=False
            )
            found[name] = {
                "right": done.returncode == 0, "seconds": time.monotonic() - started, "said": done.stderr[-TAIL:],
            }  # fmt: skip
    return {"right": all(each["right"] for each in found.values()), **found}


# All of them


def carried_out(part: Part, out: Path) -> dict[str, Any]:
    """What a part has measured, or why not."""
    command = [sys.executable, "-m", part.module, *part.arguments]
    if part.module != "tests.benchmarks.memory":
        command += ["--out", str(out)]
    started = time.monotonic()
    # A session of its own, so that what the part has started ends with it, and does not take its time from the next.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        stdout, stderr = process.communicate(timeout=part.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        return {"failed": f"not done in {part.seconds} s", "said": (stdout + stderr)[-TAIL:]}
    seconds = time.monotonic() - started
    if process.returncode:
        return {"failed": f"exit code {process.returncode}", "said": (stdout + stderr)[-TAIL:]}
    text = stdout.strip().splitlines()[-1] if part.module == "tests.benchmarks.memory" else out.read_text()
    return {"seconds": seconds, "result": json.loads(text)}


def in_a_line(found: dict[str, Any]) -> str:
    if "failed" in found:
        last = [line for line in found["said"].splitlines() if line.strip()][-1:]
        return f"FAILED: {found['failed']} {' '.join(last)[:160]}"
    result = found["result"]
    if "time" in result:
        row = result["time"][0]
        return f"time x {row['time_ratio']:.4f} {[round(at, 4) for at in row['time_ratio_quartiles']]}, memory x {result['memory_ratio']:.3f}"
    if "ratio_of_ours_to" in result:
        ratios = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in result["ratio_of_ours_to"].items())
        peak = result["vendor_peak"]
        mfu = f", {result['model_flops_per_second'] / peak:.1%} of the peak" if peak else ""
        return f"{result['tokens_per_second']['ours']:,.0f} tokens/s, ours over: {ratios}{mfu}"
    if "predicted_mib" in result:
        return f"predicted {result['predicted_mib']:.0f} MiB, measured {result['measured_mib']:.0f}: x {result['ratio']:.3f}"
    return "right" if result["right"] else "WRONG: " + json.dumps(result)[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models, for a machine without a GPU")
    parser.add_argument("--only", nargs="+", help="parts whose names begin so")
    parser.add_argument("--part", choices=["correctness", "commands"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    if o.part:
        result = correctness(o.device, o.tiny) if o.part == "correctness" else commands(o.device, o.tiny)
        o.out.write_text(json.dumps(result))
        return
    choose_compute(o.device, "auto")  # fails here if it is not there
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(o.tiny, o.device):
            if o.only and not part.name.startswith(tuple(o.only)):
                continue
            found[part.name] = carried_out(part, Path(folder) / "part.json")
            print(f"{part.name:24} {in_a_line(found[part.name])}", flush=True)
            save("gpu", {"parts": found}, o.out)
    if any("failed" in each or each["result"].get("right") is False for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
