"""How long a run will take on this machine, and how much of the machine it uses."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from acodm_cli.engine.device import Compute


def matmul_flops_per_second(compute: Compute, size: int = 1024) -> float:
    """Median of a few square matrix products in the run's precision."""
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


# Dense bf16 matrix products with fp32 sums, FLOPs per second, from the vendor's data sheets. By the start of the device's name;
# the longest that fits.
PEAK_BF16 = {
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A800": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H20": 148e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}


def peak_flops_per_second(compute: Compute) -> float | None:
    """None where it is not known: on a CPU, in fp32, and for GPUs that are not in the table."""
    if compute.device.type != "cuda" or compute.dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(compute.device)
    # A10 is not the start of A100, though its letters are.
    known = [key for key in PEAK_BF16 if name == key or name.startswith((f"{key} ", f"{key}-"))]
    return PEAK_BF16[max(known, key=len)] if known else None


def flops_per_token(model: nn.Module, seq_len: int) -> float:
    """Of training: 6 per parameter that is multiplied with, the input embedding is not; and 12·layers·hidden·T of attention
    (PaLM, 2204.02311, appendix B). What activation checkpointing computes again does not count."""
    config: Any = model.config
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    tied = embedding is model.get_output_embeddings().weight  # type: ignore[operator]
    parameters = sum(parameter.numel() for parameter in model.parameters()) - (0 if tied else embedding.numel())
    return 6.0 * parameters + 12.0 * config.num_hidden_layers * config.hidden_size * seq_len


def describe_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
