"""Chooses where and in which precision to compute."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from acodm_cli.errors import ResourceError, UsageError

_VOLTA, _AMPERE = (7, 0), (8, 0)
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

    def sent(self, tensor: Tensor) -> Tensor:
        """Returns a tensor of the host on the device, without waiting for it: a GPU fetches it from pinned memory."""
        return self.pinned(tensor).to(self.device, non_blocking=True)

    def pinned(self, tensor: Tensor) -> Tensor:
        """Returns a tensor of the host in memory that a GPU can fetch it from by itself."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    @property
    def label(self) -> str:
        """The device's name and the precision, for people."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {'bf16' if self.dtype == torch.bfloat16 else 'fp32'}"


def gpu_of_rank(local_rank: int) -> int:
    """Returns the number of a rank's GPU among those that its process sees. local_rank: its number on this machine.

    Raises:
        ResourceError: there are fewer GPUs than ranks.
    """
    count = torch.cuda.device_count()
    if local_rank < count:
        return local_rank
    # Slurm's --gpus-per-task and its like show each task its own GPU only.
    if count == 1 and os.environ.get("SLURM_LOCALID") == str(local_rank):
        return 0
    raise ResourceError(
        f"rank {local_rank} of this machine has no GPU of its own ({count} here); start as many ranks as there are GPUs, or use "
        "--device cpu"
    )


def choose_compute(device: str, dtype: str, local_rank: int | None = None) -> Compute:
    """Turns --device and --dtype into a Compute. `auto` is CUDA with bf16, or with fp32 on GPUs before Ampere, which emulate
    bf16; without a GPU, it is the CPU with fp32.

    local_rank: the rank's number on this machine, None if there is but one rank.

    Raises:
        UsageError: there is no such kind of device, or no such dtype, or all ranks would share one GPU.
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
    if chosen.index is not None and chosen.type == "cuda" and local_rank is not None:
        raise UsageError(f"--device {device} is one GPU, and every rank needs its own; use --device cuda")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", 0 if local_rank is None else gpu_of_rank(local_rank))
    if dtype == "auto":
        capable = chosen.type == "cuda" and torch.cuda.get_device_capability(chosen) >= _AMPERE
        dtype = "bf16" if capable else "fp32"
    return Compute(chosen, DTYPES[dtype])


def compiler_lacks(device: torch.device) -> str | None:
    """Returns what is missing here for torch.compile to make kernels for a GPU, None if nothing is. Triton makes them, and has
    the machine's C compiler build what launches them."""
    if torch.cuda.get_device_capability(device) < _VOLTA:
        return "the GPU is older than what Triton makes kernels for"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    compilers = os.environ.get("CC", "").split()[:1] or ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"there is no C compiler ({' or '.join(compilers)})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's header files are not installed (python3-dev)"
    return None


def compute_deterministically() -> None:
    """Makes this process use algorithms alone whose results do not depend on the order in which threads come to add. It must be called
    before the first matrix product on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # of tensors that are written before they are read
    torch.backends.cudnn.benchmark = False
