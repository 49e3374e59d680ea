"""What learning costs on a GPU, counted and not measured: the bytes and FLOPs of the sketches against those of a step.

    python -m tests.benchmarks.roofline --models pythia-160m pythia-1b

A static step takes its matrix products' FLOPs at --mfu of the peak, and the bytes that its loss moves. A learning step moves the
bytes of the sketches beside that, at --bandwidth-share of the bandwidth; their few FLOPs run in fp32, outside of tensor cores. Not
counted: launches, and the agent, which learns on the host while the GPU works. Defaults are an H100 SXM's data sheet.

All bytes are per token. A watched layer y = W x has I inputs and O outputs; δ and x are bf16, but for the embedding's δ and the
unembedding's x, which are fp32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from acodm_cli.alignment.probe import Layer, select_layers
from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.engine.models import model_config
from tests.benchmarks.environment import save

VOCABULARY = 50304
BF16, FP32 = 2, 4
# The bytes that the loss moves per logit: the product writes it; the softmax reads it twice and writes the gradient, which two
# products read. In passes of their own, the conversion, maximum, difference, exponential, sum, product, and the conversion back
# read and write fp32.
LOSS_COMPILED = 4 * BF16 + 2 * BF16
LOSS_IN_PASSES = BF16 + (BF16 + FP32) + FP32 + 2 * FP32 + 2 * FP32 + FP32 + 2 * FP32 + (FP32 + BF16) + 2 * BF16
TILE = 128  # columns that a product on tensor cores computes at once


@dataclass(frozen=True)
class Way:
    """A way to make the sketches. every: one token in so many. steps: one step in so many. compiled: what is drawn is read once; else
    it is copied first. columns: the sketches are columns of the products that a step computes anyway."""

    every: int = 1
    steps: int = 1
    compiled: bool = True
    columns: bool = False


WAYS = {
    "all tokens, logits in fp32 (before)": Way(compiled=False),
    "all tokens": Way(),
    "all tokens, columns of the products": Way(columns=True),
    "all tokens, 1 in 4 steps": Way(steps=4),
    "1 in 4 tokens, not compiled": Way(every=4, compiled=False),
    **{f"1 in {every} tokens": Way(every=every) for every in (2, 4, 8, 16)},
    "1 in 4 tokens, 1 in 4 steps": Way(every=4, steps=4),
}


@dataclass(frozen=True)
class Cost:
    """Per token: bytes, FLOPs in fp32, and FLOPs on tensor cores."""

    bytes: float = 0.0
    fp32: float = 0.0
    tensor: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.fp32 + other.fp32, self.tensor + other.tensor)

    def times(self, share: float) -> Cost:
        return Cost(self.bytes * share, self.fp32 * share, self.tensor * share)

    def seconds(self, options: argparse.Namespace) -> float:
        return (
            self.bytes / (options.bandwidth * options.bandwidth_share)
            + self.fp32 / options.fp32
            + self.tensor / (options.peak * options.mfu)
        )


def of_step(model: nn.Module, options: argparse.Namespace, loss_bytes: int = LOSS_COMPILED) -> Cost:
    """A static step: six FLOPs per weight of a matrix product, those of causal attention, and the loss."""
    config: Any = model.config
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = 6 * config.num_hidden_layers * config.hidden_size * options.seq_len
    return Cost(bytes=loss_bytes * VOCABULARY, tensor=6 * weights + attention)


def of_layer(way: Way, layer: Layer, options: argparse.Namespace) -> Cost:
    """The sketch of one layer, in a step that looks at it."""
    rows, columns = layer.weight.shape
    embedding, head = isinstance(layer, nn.Embedding), rows == VOCABULARY and not isinstance(layer, nn.Embedding)
    inputs, outputs = (0, columns) if embedding else (columns, rows)
    size = options.size
    x_bytes = (FP32 if head else BF16) * inputs
    delta_bytes = (FP32 if embedding or (head and not way.compiled) else BF16) * outputs
    # Both sketches are written and read; a sequence's sum of products is written, read, and added to that of its group.
    small = 2 * FP32 * 2 * size
    sums = 4 * FP32 * size * size / options.seq_len
    products = 2 * size * size * (0 if embedding else 1) + 2 * size
    if way.columns and not embedding:
        wide = -(-size // TILE) * TILE
        copies = 2 * BF16 * rows * columns / options.micro_tokens  # [W | Aᵀ] is put together for each micro-batch
        return Cost(small + sums + 2 * copies, products, 2 * wide * (inputs + outputs))
    passes = 1 if way.compiled or way.every == 1 else 3  # what is drawn is read, written, and read again
    share = 1 / way.every
    return Cost(share * (passes * (x_bytes + delta_bytes) + small) + sums, share * (2 * (inputs + outputs) + products))


def of_sketch(way: Way, model: nn.Module, options: argparse.Namespace) -> Cost:
    """All that learning adds: layers outside of blocks in every step, and one block in `rotation`."""
    total, groups = Cost(), min(options.step_tokens // options.seq_len, 2 * options.domains)
    for name, layer in select_layers(model, "all").items():
        looked = 1 / options.rotation if any(part.isdigit() for part in name.split(".")) else 1.0
        gram = FP32 * groups * options.size**2 * 2 / options.step_tokens  # written, and read by the Gram matrix
        total += (of_layer(way, layer, options) + Cost(gram)).times(looked)
    return total.times(1 / way.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pythia-160m", "pythia-1b"])
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--step-tokens", type=int, default=1 << 16)
    parser.add_argument("--micro-tokens", type=int, default=1 << 14)
    parser.add_argument("--domains", type=int, default=13)
    parser.add_argument("--size", type=int, default=AlignmentSettings.alignment_size)
    parser.add_argument("--rotation", type=int, default=AlignmentSettings.alignment_rotation)
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of tensor cores in bf16")
    parser.add_argument("--fp32", type=float, default=67e12, help="FLOP/s in fp32")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes/s")
    parser.add_argument("--mfu", type=float, default=0.5)
    parser.add_argument("--bandwidth-share", type=float, default=0.8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"options": {k: v for k, v in vars(options).items() if k != "out"}}
    for name in options.models:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(model_config(name, VOCABULARY, options.seq_len))
        step = of_step(model, options)
        in_passes = of_step(model, options, LOSS_IN_PASSES).seconds(options)
        loss = Cost(bytes=step.bytes).seconds(options)
        print(
            f"{name}: {step.tensor / 1e9:.3f} GFLOP and {1e9 * step.seconds(options):.0f} ns per token, {loss / step.seconds(options):.1%} of it in "
            f"the loss; with a loss that is not compiled {1e9 * in_passes:.0f} ns"
        )
        rows = found[name] = {
            "ns_per_token": 1e9 * step.seconds(options),
            "ns_loss_in_passes": 1e9 * in_passes,
            "ways": {},
        }
        for way, how in WAYS.items():
            cost = of_sketch(how, model, options)
            whole = in_passes if way.endswith("(before)") else step.seconds(options)
            share = cost.seconds(options) / whole
            rows["ways"][way] = {**vars(cost), "share": share}
            print(
                f"  {way:38} {cost.bytes / 1e3:7.1f} kB {(cost.fp32 + cost.tensor) / 1e6:7.3f} MFLOP {cost.seconds(options) * 1e9:7.1f} ns {share:7.2%}"
            )
    save("roofline", found, options.out)


if __name__ == "__main__":
    main()
