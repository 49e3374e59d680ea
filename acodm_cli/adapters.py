"""A sampler, and a dataset that mixes domains, which bring a schedule into other trainers that are written in PyTorch.

Both draw what acodm's own engine draws: every global batch has exact counts, no sequence repeats within an epoch of its
domain, and the schedule and a seed alone decide. So they need no state: to resume, begin at `first_step`. Hugging
Face's `Trainer` itself skips what it has seen when it resumes; leave `first_step` at 0 there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data import Sampler as TorchSampler

from acodm_cli.corpus.sampler import IndexSampler
from acodm_cli.schedule.schedule import Schedule


class _Draws:
    """The domain of every sequence of a run and its index within that domain, in order."""

    def __init__(
        self, schedule: Schedule, sizes: Mapping[str, int], steps: int, batch: int, seed: int, first_step: int
    ) -> None:
        if steps < 1 or batch < 1:
            raise ValueError(f"steps and batch must be positive, not {steps} and {batch}")
        if not 0 <= first_step <= steps:
            raise ValueError(f"first_step must be from 0 to {steps}, not {first_step}")
        if empty := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"there is nothing in {', '.join(empty)}")
        self.timeline = schedule.in_order_of(list(sizes)).timeline
        self.sizes_K = np.array(list(sizes.values()), dtype=np.int64)
        self.steps, self.batch, self.seed, self.first_step = steps, batch, seed, first_step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        sampler = IndexSampler(self.sizes_K, self.batch, self.seed)
        for step in range(self.steps):
            weights_K = self.timeline.at_progress((step + 0.5) / self.steps)
            if step < self.first_step:
                sampler.skip(weights_K)
                continue
            domains_B, indices_B, _ = sampler.pick(weights_K)
            yield from zip(domains_B.tolist(), indices_B.tolist(), strict=True)

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.batch


class ScheduleSampler(TorchSampler[int]):
    """Yields indices into a `torch.utils.data.ConcatDataset` of map-style datasets, one per domain, for a `DataLoader`.

    schedule: the mixture, stretched over the run. sizes: the length of each domain's dataset, in the order of the
    concatenation; the domains are those of the schedule. steps: optimiser steps of the run. batch: global batch in
    sequences. first_step: the step to begin at, counted from 0.

    With several ranks, give all of them the same sampler and let each take its batches of every global batch, as
    `accelerate` does.

    Raises:
        ValueError: there are no steps, no batch, or no sequences in a domain; or the first step is outside the run.
        UsageError: the domains are not those of the schedule.
    """

    def __init__(
        self, schedule: Schedule, sizes: Mapping[str, int], steps: int, batch: int, seed: int = 0, first_step: int = 0
    ) -> None:
        self.draws = _Draws(schedule, sizes, steps, batch, seed, first_step)
        self.offsets_K = np.cumsum([0, *sizes.values()])[:-1].tolist()

    def __iter__(self) -> Iterator[int]:
        return (self.offsets_K[domain] + index for domain, index in self.draws)

    def __len__(self) -> int:
        return len(self.draws)


class MixedDataset(IterableDataset[Any]):
    """The examples of several datasets, mixed as a schedule says, for Hugging Face's `Trainer` or any `DataLoader`.

    schedule: the mixture, stretched over the run. datasets: a map-style or an iterable dataset for each domain.
    Map-style ones are drawn in a random order and iterable ones as they come; both begin again at their end. steps:
    optimiser steps of the run. batch: global batch in sequences, that is devices x per-device batch x gradient
    accumulation. first_step: the step to begin at, counted from 0; iterable datasets begin at their beginning all the
    same. loader_batch: the `DataLoader`'s batch size, needed if it has several workers, since each of them makes every
    n-th batch. All datasets must then be map-style, because iterable ones divide themselves among workers.

    Raises:
        ValueError: there are no steps, no batch, or no examples in a domain; or the first step is outside the run.
            While iterating: there are several workers, and an iterable dataset or no loader_batch.
        UsageError: the domains are not those of the schedule.
    """

    def __init__(
        self,
        schedule: Schedule,
        datasets: Mapping[str, Any],
        steps: int,
        batch: int,
        seed: int = 0,
        first_step: int = 0,
        loader_batch: int | None = None,
    ) -> None:
        self.datasets = list(datasets.values())
        # A dataset without a length is read in its own order, whatever index is asked for.
        sizes = {name: len(data) if _is_map(data) else 1 for name, data in datasets.items()}
        self.draws = _Draws(schedule, sizes, steps, batch, seed, first_step)
        self.loader_batch = loader_batch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, this = (1, 0) if worker is None else (worker.num_workers, worker.id)
        streams = [None if _is_map(data) else _Repeated(data) for data in self.datasets]
        if workers > 1 and any(streams):
            raise ValueError("with iterable datasets MixedDataset takes one worker: set num_workers to 0 or 1")
        if workers > 1 and self.loader_batch is None:
            raise ValueError("with several workers MixedDataset needs loader_batch, the DataLoader's batch size")
        for number, (domain, index) in enumerate(self.draws):
            stream = streams[domain]
            if stream is not None:
                yield next(stream)
            elif number // (self.loader_batch or 1) % workers == this:
                yield self.datasets[domain][index]


def _is_map(data: Any) -> bool:
    # The methods alone are not enough: every IterableDataset of PyTorch inherits __getitem__, and some have a length.
    return not isinstance(data, IterableDataset) and hasattr(data, "__len__") and hasattr(data, "__getitem__")


class _Repeated(Iterator[Any]):
    """Repeats an iterable without end; if it has `set_epoch`, as in Hugging Face datasets, in a new order each time."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.epoch = 0
        self.examples = iter(data)

    def __next__(self) -> Any:
        try:
            return next(self.examples)
        except StopIteration:
            self.epoch += 1
            if hasattr(self.data, "set_epoch"):
                self.data.set_epoch(self.epoch)
            self.examples = iter(self.data)
        try:
            return next(self.examples)
        except StopIteration:
            raise ValueError("a dataset of the mixture is empty, or cannot be read again from its beginning") from None
