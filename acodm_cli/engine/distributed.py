"""Data-parallel ranks: processes of PyTorch's own distributed stack, started by torchrun, srun or `--nproc`.

Every rank runs the same loop on its share of each batch. All decisions are made on the first rank and broadcast, so
that all ranks agree bit for bit; only the first rank writes and prints.

Device tensors go over NCCL and host tensors over gloo, so that what the ranks tell each other about the mixture never
waits for a GPU.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed import device_mesh, fsdp, tensor
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from acodm_cli import errors
from acodm_cli.engine.device import Compute, gpu_of_rank
from acodm_cli.engine.settings import Parallel
from acodm_cli.errors import AcodmError, ResourceError, UsageError
from acodm_cli.writing import in_short

# Ranks wait for the first one while it tokenises a corpus. In training, `watch.py` is sooner.
_TIMEOUT = timedelta(hours=6)
# NCCL, of which nothing is needed but in training, gives up after so many times what `watch.py` waits, or PyTorch's own default. It ends
# what the watch does not see, which is the first step, and cannot say which rank hangs.
_NCCL_PATIENCE, _NCCL_LEAST = 2, timedelta(minutes=10)
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all ranks. rank: its number, from 0 to world_size - 1. local_rank: its number on this machine,
    which is the index of its GPU. store: where ranks that have joined leave each other messages."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    store: Any = field(default=None, compare=False)  # a torch.distributed.Store, which torch does not export as a type

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there is more than one rank."""
        return self.world_size > 1

    def first(self, work: Callable[[], T]) -> T | None:
        """Does work on the first rank. The others wait, get None, and fail as it does.

        Raises:
            AcodmError: what work raised.
        """
        return self._together(work if self.is_first else None)

    def shared(self, work: Callable[[], T]) -> T:
        """Does work on the first rank. All ranks get its result.

        Raises:
            AcodmError: what work raised.
        """
        result = [self.first(work)]
        if self.many:
            distributed.broadcast_object_list(result)
        return result[0]  # type: ignore[return-value]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Does work on all ranks, and returns each rank's own result. The first rank goes first, then the first of
        every other machine, then the rest: later ranks find what earlier ones have cached.

        Raises:
            AcodmError: what work raised on any rank.
        """
        turn = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        results = [self._together(work if now == turn else None) for now in range(3 if self.many else 1)]
        result = results[turn]
        assert result is not None
        return result

    def _together(self, work: Callable[[], T] | None) -> T | None:
        result, failure = None, None
        try:
            result = work() if work else None
        except AcodmError as error:
            failure = error
        failures: list[AcodmError | None] = [failure]
        if self.many:
            failures *= self.world_size
            distributed.all_gather_object(failures, failure)
        for failure in failures:
            if failure is not None:
                raise failure
        return result

    def from_first(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the first rank's values on all ranks."""
        if not self.many:
            return values
        shared = torch.from_numpy(values.copy())
        distributed.broadcast(shared, 0)
        return shared.numpy()

    def largest(self, value: int) -> int:
        """Returns the largest of all ranks' values."""
        if not self.many:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)

    def sum_(self, values: Tensor) -> Tensor:
        """Sums values over all ranks, in place, and returns them."""
        if self.many:
            distributed.all_reduce(values)
        return values


def ranks_asked_for() -> Ranks:
    """Reads the ranks that torchrun and its like have put into the environment.

    Raises:
        UsageError: the environment is not complete.
    """
    given = {name: os.environ.get(name, "").strip() for name in _OF_A_RANK}
    if given["WORLD_SIZE"] in ("", "1"):
        return Ranks()
    wrong = [name for name in _OF_A_RANK[:3] if not given[name].isdigit()] + [n for n in _OF_A_RANK[3:] if not given[n]]
    if wrong:
        raise UsageError(
            f"WORLD_SIZE is {given['WORLD_SIZE']!r}, but {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} missing or no "
            "number; start ranks with --nproc or torchrun, or unset WORLD_SIZE for a single process"
        )
    ranks = Ranks(*(int(given[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if ranks.rank >= ranks.world_size:
        raise UsageError(f"RANK is {ranks.rank}, but WORLD_SIZE is {ranks.world_size}; ranks count from 0")
    return ranks


@contextmanager
def joined(ranks: Ranks, device: str, minutes: float) -> Iterator[Ranks]:
    """A context in which the ranks can talk to each other; gives the ranks with their store. device, minutes: the values of
    --device and --rank-timeout.

    Raises:
        ResourceError: there are fewer GPUs than ranks on this machine, or the ranks do not find each other.
    """
    if not ranks.many:
        yield ranks
        return
    gpu = None
    if device != "cpu" and torch.cuda.is_available():
        gpu = torch.device("cuda", gpu_of_rank(ranks.local_rank))
        torch.cuda.set_device(gpu)
    try:
        store = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=_TIMEOUT))[0]
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=distributed.PrefixStore("torch", store),  # type: ignore[attr-defined]
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=_TIMEOUT,
            device_id=gpu,  # or else NCCL guesses which GPU is this rank's
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ResourceError(f"the ranks do not find each other at {address}: {in_short(error)}") from None
    if gpu:
        nccl = distributed.group.WORLD._get_backend(gpu)  # type: ignore[union-attr]
        nccl._set_default_timeout(max(_NCCL_LEAST, _NCCL_PATIENCE * timedelta(minutes=minutes)))
    errors.joined = True
    yield replace(ranks, store=store)
    # After a failure this is left out: it could wait for ever, and the process ends anyhow.
    distributed.barrier()
    gc.collect()
    distributed.destroy_process_group()


def parallelised(loss: nn.Module, blocks: list[nn.Module], how: Parallel, ranks: Ranks, compute: Compute) -> nn.Module:
    """Returns the module to call instead of `loss`. Gradients are summed over ranks, each of which adds its share of
    the mean over the batch.

    ddp: each rank holds everything, and gradients are added up while the backward pass runs. fsdp: parameters,
    gradients and optimiser state are spread over the ranks, block by block (FSDP2, `fully_shard`).
    """
    if not ranks.many:
        return loss
    if how == "ddp":
        with warnings.catch_warnings():  # the option's new name is not in every release that we support
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, _sum_of_ranks)
        return wrapped
    mesh = device_mesh.init_device_mesh(compute.device.type, (ranks.world_size,))
    precision = fsdp.MixedPrecisionPolicy(
        param_dtype=None if compute.dtype == torch.float32 else compute.dtype, reduce_dtype=torch.float32
    )
    for module in (*blocks, loss):
        fsdp.fully_shard(module, mesh=mesh, mp_policy=precision)
        assert isinstance(module, fsdp.FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return loss


def _sum_of_ranks(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
    work = distributed.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


@contextmanager
def gradients_stay_here(module: nn.Module, stay: bool) -> Iterator[None]:
    """A context for one micro-batch. stay: whether its gradients are not yet sent to the other ranks, because it is not
    the last of its step. With fsdp they are whole until then, and a shard afterwards."""
    how: AbstractContextManager[Any] = nullcontext()
    if isinstance(module, DistributedDataParallel) and stay:
        how = module.no_sync()
    elif isinstance(module, fsdp.FSDPModule):
        module.set_requires_gradient_sync(not stay)
    with how:
        yield


def reshard(module: nn.Module) -> None:
    """Spreads parameters over the ranks again: those that belong to no block stay whole after a forward pass without a backward
    pass, and could not be loaded then."""
    if isinstance(module, fsdp.FSDPModule):
        module.reshard()


def whole(values: Tensor) -> Tensor:
    """Returns a tensor in one piece on each rank, even if it was spread over the ranks."""
    return values.full_tensor() if isinstance(values, tensor.DTensor) else values
