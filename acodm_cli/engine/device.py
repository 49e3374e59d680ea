"""Chooses where and in which precision to compute."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from acodm_cli.errors import ResourceError, UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """A device and a precision. Weights are always fp32; with bf16, matrix products run under autocast."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """A context in which matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def label(self) -> str:
        """The device's name and the precision, for people."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {'bf16' if self.dtype == torch.bfloat16 else 'fp32'}"


def choose_compute(device: str, dtype: str, local_rank: int | None = None) -> Compute:
    """Turns --device and --dtype into a Compute. `auto` is CUDA with bf16 where there is a GPU, else the CPU with fp32.

    local_rank: the GPU of this rank, None for the first GPU.

    Raises:
        UsageError: there is no such kind of device, or no such dtype.
        ResourceError: this machine does not have the device.
    """
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {dtype}: use auto, bf16 or fp32")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"--device {device}: use auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank or 0)
    if dtype == "auto":
        dtype = "bf16" if chosen.type == "cuda" else "fp32"
    return Compute(chosen, DTYPES[dtype])
