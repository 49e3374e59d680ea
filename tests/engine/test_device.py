"""Which device a run computes on, on machines with GPUs that are only pretended here."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path

import pytest
import torch

from acodm_cli.engine.device import choose_compute, compiler_lacks
from acodm_cli.errors import ResourceError, UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with four H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    return monkeypatch


def test_every_rank_has_a_gpu(gpus: pytest.MonkeyPatch) -> None:
    assert choose_compute("auto", "auto").device == torch.device("cuda", 0)
    assert choose_compute("cuda:2", "auto").device == torch.device("cuda", 2)
    assert choose_compute("auto", "auto", 3).device == torch.device("cuda", 3)
    with pytest.raises(ResourceError, match="rank 4 of this machine has no GPU of its own"):
        choose_compute("cuda", "auto", 4)
    with pytest.raises(UsageError, match="--device cuda:1 is one GPU, and every rank needs its own"):
        choose_compute("cuda:1", "auto", 0)


def test_a_task_that_sees_its_own_gpu_only(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ResourceError, match="no GPU of its own"):
        choose_compute("cuda", "auto", 3)
    gpus.setenv("SLURM_LOCALID", "3")
    assert choose_compute("cuda", "auto", 3).device == torch.device("cuda", 0)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_bf16_by_default_only_where_the_gpu_has_it(
    capability: tuple[int, int], dtype: torch.dtype, gpus: pytest.MonkeyPatch
) -> None:
    gpus.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_compute("auto", "auto").dtype == dtype
    assert choose_compute("auto", "bf16").dtype == torch.bfloat16


def test_what_a_compiler_for_the_gpu_lacks(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = torch.device("cuda", 0)
    gpus.setattr(importlib.util, "find_spec", lambda name: None)
    assert compiler_lacks(gpu) == "Triton is not installed"
    gpus.setattr(importlib.util, "find_spec", lambda name: name)
    gpus.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    gpus.setenv("PATH", str(tmp_path))
    gpus.delenv("CC", raising=False)
    assert compiler_lacks(gpu) == "there is no C compiler (gcc or clang)"
    (tmp_path / "clang").touch(mode=0o755)
    assert compiler_lacks(gpu) == "Python's header files are not installed (python3-dev)"
    (tmp_path / "Python.h").touch()
    assert compiler_lacks(gpu) is None
    gpus.setenv("CC", "icx -O1")
    assert compiler_lacks(gpu) == "there is no C compiler (icx)"
    gpus.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "older" in str(compiler_lacks(gpu))
