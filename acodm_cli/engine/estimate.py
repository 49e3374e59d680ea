"""The arithmetic of training, and how much of it a device can do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from acodm_cli.engine.device import Compute

# FLOPs per second of dense bf16 matrix products with fp32 sums, from the vendor's data sheets. A key is the start of a
# device's name; the longest key that fits counts.
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
    """The peak FLOPs per second of the device. None on a CPU, in fp32, and for GPUs that are not in the table."""
    if compute.device.type != "cuda" or compute.dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(compute.device)
    # A key ends where a word of the name ends: A10 does not fit A100.
    known = [key for key in PEAK_BF16 if name == key or name.startswith((f"{key} ", f"{key}-"))]
    return PEAK_BF16[max(known, key=len)] if known else None


def flops_per_token(model: nn.Module, seq_len: int) -> float:
    """The FLOPs of training per token: 6 for each parameter in a product (the input embedding is in none), and
    12·layers·hidden·T for attention (PaLM, 2204.02311, appendix B). Recomputed activations do not count."""
    config: Any = model.config
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    tied = embedding is model.get_output_embeddings().weight  # type: ignore[operator]
    parameters = sum(parameter.numel() for parameter in model.parameters()) - (0 if tied else embedding.numel())
    return 6.0 * parameters + 12.0 * config.num_hidden_layers * config.hidden_size * seq_len


def describe_seconds(seconds: float) -> str:
    """A duration in its fitting unit, such as "12 min" or "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
