"""Brings the state of training to the host, where it can be written while training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acodm_cli.engine.distributed import Ranks, whole


class HostCopy:
    """Memory of the first rank's host that states are copied to.

    It is kept from one state to the next, because new memory takes ten times as long to write to. What comes from a GPU has it
    pinned.

    PyTorch rounds pinned memory up to powers of two bytes. A block per tensor takes 1.13 times the bytes of pythia-1b's state, and 1.68
    times those of pythia-160m's; a single block for all would take 1.42 and 1.10 times as many, and 1.93 times those of pythia-12b's
    instead of 1.37.
    """

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        """device: where the ranks compute."""
        self.device, self.ranks = device, ranks
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def take(self, state: dict[str, Any], of_host: bool) -> dict[str, Any]:
        """Returns a state of plain values, lists and dictionaries, with whole tensors on the host. Every rank must call it;
        only the first rank's result is of use, and only until the next call.

        of_host: whether tensors that are whole on the host already are copied too, so that the result stays as it is while
        the state changes.
        """
        copied: dict[tuple[Any, ...], Tensor] = {}
        taken = self._taken(state, (), of_host, copied)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        assert isinstance(taken, dict)
        return taken

    def _taken(self, value: Any, place: tuple[Any, ...], of_host: bool, copied: dict[tuple[Any, ...], Tensor]) -> Any:
        if isinstance(value, dict):
            return {key: self._taken(part, (*place, key), of_host, copied) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._taken(part, (*place, i), of_host, copied) for i, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        tensor = whole(value)
        on_host = tensor is value and tensor.device.type == "cpu"
        if not self.ranks.is_first or (on_host and not of_host):
            return value
        # Tied weights have two names, and are written once.
        same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor is value else place
        if same not in copied:
            copied[same] = self._memory(place, tensor).copy_(tensor, non_blocking=True)
        return copied[same]

    def _memory(self, place: tuple[Any, ...], tensor: Tensor) -> Tensor:
        """Returns the memory that is kept for a tensor. place: the keys that lead to it."""
        kept = self._kept.get(place)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._kept[place] = kept = kept if tensor.device.type == "cpu" else kept.pin_memory()
        return kept
