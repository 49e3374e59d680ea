"""A fake CUDA device, so that a machine without a GPU can tell what a GPU would complain about or wait for.

    with FakeCuda() as gpu:
        run = build_run(RunSettings(device="cuda", ...))
        next(run.steps())
    assert not gpu.mismatches
    assert gpu.waits == {...}

All data stays on the CPU, and results are true. Each storage has a label that says on which side it lies; tensors answer by it when
they are asked for their device, so code takes the paths that it has for CUDA. Operations on operands of both sides are refused as
CUDA refuses them. Counted, with the line of acodm that they are in:

    waits       the host waits for the device: a value or a shape is needed (`.item()`, `bool(tensor)`, `nonzero`, a boolean mask),
                results are fetched (`.cpu()`), something is sent without `non_blocking`, or `synchronize`
    pageable    something is sent with `non_blocking`, but not from pinned memory, so it is not asynchronous
    kernels     operations that would launch at least one kernel

What it cannot tell: the numbers of CUDA's kernels (bf16 runs by the CPU's autocast list), memory, time, streams that race, NCCL. It
is not for torch.compile, which does not trace under modes; graphs are counted without it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # which keeps the functions that it knows from when it is imported: not those that stand in for them
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

import acodm_cli

CUDA, HOST = torch.device("cuda", 0), torch.device("cpu")
_PACKAGE = str(Path(acodm_cli.__file__).parent)
_LIBRARIES = ("/transformers/", "/torch/optim/", "/torch/nn/utils/")
_aten = torch.ops.aten

# Their result, or its shape, depends on values, which the host must see.
_NEED_VALUES = (
    _aten._local_scalar_dense, _aten.is_nonzero, _aten.item, _aten.equal, _aten.nonzero, _aten.masked_select, _aten._unique2,
    _aten.unique_dim, _aten.unique_consecutive, _aten.repeat_interleave, _aten.bincount, _aten.histc, _aten.allclose,
)  # fmt: skip
_MOVES = (_aten.copy_, _aten._to_copy, _aten.set_)
_INDEXING = (_aten.index, _aten.index_put_, _aten.index_put, _aten._index_put_impl_)


def _label(tensor: Tensor) -> Any:
    """What the labels of a tensor are attributes of: its storage, which views share."""
    return tensor.untyped_storage()


def device_of(tensor: Tensor) -> torch.device | None:
    """The side that a tensor lies on; None for what an operation made by itself, which fits both."""
    return getattr(_label(tensor), "fake_device", HOST)


def _place(value: Any, device: torch.device | None) -> None:
    for tensor in _tensors(value):
        _label(tensor).fake_device = device


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if _is_real(value) else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for each in values for tensor in _tensors(each)]


def _is_real(tensor: Tensor) -> bool:
    """Whether a tensor has data: those on the device meta and those of FakeTensorMode have none, and are left alone."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta


def _is_pinned(tensor: Tensor) -> bool:
    return getattr(_label(tensor), "fake_pinned", False)


def _names_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


class FakeCuda:
    """A context with a fake GPU. mismatches: the operations that CUDA would refuse, each with its line. waits, pageable: how often
    each line of acodm did that. kernels: how often each operation ran."""

    def __init__(self, memory: int = 80 << 30) -> None:
        self.memory = memory
        self.clear()

    def clear(self) -> None:
        """Forgets what was counted."""
        self.mismatches: list[str] = []
        self.waits: Counter[str] = Counter()
        self.pageable: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __enter__(self) -> FakeCuda:
        self.stack = ExitStack()
        functions = _Functions(self)
        for owner, name, value in self._replaced(functions):
            self.stack.enter_context(mock.patch.object(owner, name, value))
        # What is computed again lies on neither side, because the hooks of saved tensors run without modes.
        same = {"default": lambda tensor: (tensor.shape, tensor.dtype)}
        self.stack.enter_context(mock.patch.dict(checkpoint._allowed_determinism_checks_to_fns, same))
        self.stack.enter_context(_Operations(self))
        self.stack.enter_context(functions)
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def wait(self, why: str) -> None:
        """Counts a wait of the host, in the line that is running."""
        self.waits[f"{_line()} ({why})"] += 1

    def _replaced(self, functions: TorchFunctionMode) -> list[tuple[Any, str, Any]]:
        """Returns what stands in for parts of torch that have no data path, as (owner, name, replacement)."""
        autograd: Any = torch.autograd
        run_backward, group = autograd._engine_run_backward, torch._C._group_tensors_by_device_and_dtype
        is_enabled, get_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

        def backward(*args: Any, **kwargs: Any) -> Any:
            with (
                functions
            ):  # `Tensor.backward` is a function that the mode is shown, and a mode is off in what it is shown
                return run_backward(*args, **kwargs)

        def by_device(*args: Any) -> Any:
            found = {}
            for (_, dtype), (lists, indices) in group(*args).items():
                first = next(tensor for each in lists for tensor in each if tensor is not None)
                found[device_of(first), dtype] = lists, indices
            return found

        def cpu_for(kind: str) -> str:
            return "cpu" if kind == "cuda" else kind

        cuda: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: "NVIDIA H100 80GB HBM3",
            "set_device": lambda device: None,
            "mem_get_info": lambda device=None: (self.memory, self.memory),
            "max_memory_allocated": lambda device=None: 0,
            "manual_seed_all": lambda seed: None,
            "current_stream": lambda device=None: SimpleNamespace(synchronize=lambda: self.wait("synchronize")),
            "synchronize": lambda device=None: self.wait("synchronize"),
        }
        return [
            (autograd, "_engine_run_backward", backward),
            (torch._C, "_group_tensors_by_device_and_dtype", by_device),
            (torch, "Generator", _Generator),
            (torch, "autocast", _Autocast),
            (torch.amp, "autocast", _Autocast),
            (torch, "is_autocast_enabled", lambda *kind: is_enabled(*map(cpu_for, kind))),
            (torch, "get_autocast_dtype", lambda kind: get_dtype(cpu_for(kind))),
            *((torch.cuda, name, value) for name, value in cuda.items()),
        ]


class _Generator(torch.Generator):
    """A generator that remembers which device it is of."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made: Any = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.fake_device = CUDA if _names_cuda(device) else HOST
        return made


class _Autocast(torch.autocast):
    """Autocast of the CPU for both."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _line() -> str:
    """The innermost running line of acodm, after that of a library which it has called, if it is one of those that we look into."""
    frame, inner = sys._getframe(1), ""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            return f"{inner}{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"
        if not inner and any(each in code.co_filename for each in _LIBRARIES):
            inner = f"{Path(code.co_filename).name} {code.co_name} < "
        frame = frame.f_back  # type: ignore[assignment]
    return inner + "outside of acodm"


class _Operations(TorchDispatchMode):
    """Sees each operation that runs, those of backward passes included."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = _tensors(args) + _tensors(kwargs)
        devices = [device_of(operand) for operand in operands]
        on_cuda = CUDA in devices
        if on_cuda:
            self._check(func, args, kwargs or {}, operands, devices)
        result = func(*args, **(kwargs or {}))
        given = {operand.untyped_storage()._cdata for operand in operands}
        made = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in given]
        _place(made, CUDA if on_cuda else HOST if HOST in devices else None)
        if on_cuda and (made or func._schema.is_mutable):
            self.gpu.kernels[func.overloadpacket.__name__] += 1
        return result

    def _check(
        self, func: Any, args: Any, kwargs: Any, operands: list[Tensor], devices: list[torch.device | None]
    ) -> None:
        packet, gpu = func.overloadpacket, self.gpu
        if packet in _NEED_VALUES and (packet is not _aten.repeat_interleave or func is _aten.repeat_interleave.Tensor):
            gpu.wait(packet.__name__)
        if packet in _INDEXING:
            indices = _tensors(args[1])
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                gpu.wait("boolean mask")
            if device_of(args[0]) == HOST:
                self._refuse(func, operands, devices)
            if any(device_of(index) == HOST for index in indices):
                gpu.pageable[_line()] += 1
        elif packet in _MOVES:
            if len(operands) > 1 and {CUDA, HOST} == set(devices):
                non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
                if devices[0] == HOST and not (non_blocking and _is_pinned(operands[0])):
                    gpu.wait("copy to the host")
                elif devices[1] == HOST and operands[1].dim() and not non_blocking:
                    gpu.wait("copy to the device")
        elif any(
            device == HOST and (each.dim() or "fused" in packet.__name__)
            for each, device in zip(operands, devices, strict=True)
        ):
            # A scalar on the host is taken along, but not by a fused optimiser.
            self._refuse(func, operands, devices)

    def _refuse(self, func: Any, operands: list[Tensor], devices: list[torch.device | None]) -> None:
        self.gpu.mismatches.append(f"{func} in {_line()}")
        shapes = ", ".join(f"{device} {tuple(each.shape)}" for each, device in zip(operands, devices, strict=True))
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {shapes}")


class _Functions(TorchFunctionMode):
    """Sees what Python asks of tensors: where they are, to be made somewhere, and to move."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self.gpu = gpu
        tensor: Any = torch.Tensor
        self.answers: dict[Any, Callable[..., Any]] = {
            tensor.device.__get__: lambda t: device_of(t) or HOST,
            tensor.is_cuda.__get__: lambda t: device_of(t) == CUDA,
            tensor.is_cpu.__get__: lambda t: device_of(t) != CUDA,
            tensor.get_device: lambda t: 0 if device_of(t) == CUDA else -1,
            tensor.is_pinned: lambda t, *_: _is_pinned(t),
            tensor.pin_memory: self._pinned,
            tensor.to: self._to,
            tensor.cpu: lambda t, *args, **kwargs: self._moved(t, HOST, False),
            tensor.cuda: lambda t, device=None, non_blocking=False: self._moved(t, CUDA, non_blocking),
        }
        self.made_somewhere = _device_constructors()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.answers and _is_real(args[0]):
            return self.answers[func](*args, **kwargs)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and device_of(args[0]) == CUDA:
            self.gpu.mismatches.append(f"numpy in {_line()}")
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        asked = kwargs.get("device")
        if _names_cuda(asked):
            kwargs["device"] = HOST
        generator = kwargs.get("generator")
        if generator is not None and getattr(generator, "fake_device", HOST) != (CUDA if _names_cuda(asked) else HOST):
            self.gpu.mismatches.append(f"{func.__name__} with the generator of another device in {_line()}")
        result = func(*args, **kwargs)
        if _names_cuda(asked):
            _place(result, CUDA)
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                self.gpu.wait("made of host values")
        elif asked is not None or func in self.made_somewhere:
            _place(result, HOST)
        return result

    def _pinned(self, tensor: Tensor, *_: Any) -> Tensor:
        if _is_pinned(tensor):
            return tensor
        if device_of(tensor) == CUDA:
            self.gpu.mismatches.append(f"pin_memory of a device tensor in {_line()}")
        pinned = tensor.clone()
        _label(pinned).fake_device, _label(pinned).fake_pinned = HOST, True
        return pinned

    def _to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, non_blocking = device_of(tensor), None, kwargs.get("non_blocking", False)
        if args and isinstance(args[0], Tensor):
            device, dtype = device_of(args[0]), args[0].dtype
        else:
            asked, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
            if asked is not None and asked.type == "meta":
                return torch.empty_like(tensor, device="meta", dtype=dtype)
            device = device if asked is None else CUDA if asked.type == "cuda" else HOST
        moved = self._moved(tensor, device, non_blocking)
        if dtype is not None and dtype != tensor.dtype:
            return moved.to(dtype)
        return moved.clone() if copy and moved is tensor else moved

    def _moved(self, tensor: Tensor, device: torch.device | None, non_blocking: bool) -> Tensor:
        before = device_of(tensor)
        if before == device:
            return tensor
        moved = tensor.clone()
        _place(moved, device)
        if before == CUDA and not non_blocking:
            self.gpu.wait("copy to the host")
        elif device == CUDA and not non_blocking:
            self.gpu.wait("copy to the device")
        elif device == CUDA and not _is_pinned(tensor):
            self.gpu.pageable[_line()] += 1
        return moved
