"""How long a run will take on this machine, before it starts."""

from __future__ import annotations

import time

import torch

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


def training_flops(parameters: int, tokens: int) -> float:
    """6 FLOPs per parameter and token: forward 2, backward 4 (2001.08361, section 2.1)."""
    return 6.0 * parameters * tokens


def describe_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
