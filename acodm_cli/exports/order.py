"""An order of sequences with exact counts over all data-parallel ranks, whose source is written into exported modules.

The trainers it is for draw the source of a sequence on every rank by itself, with one seed: all ranks draw the same source at the
same time. Here, every global batch has the counts that the run so far lacks, and ranks share them. Only the standard library is used.
"""

from __future__ import annotations

import heapq
import inspect
import random
from collections.abc import Sequence
from fractions import Fraction


def apportioned(shares: Sequence[int], total: int) -> list[int]:
    """Returns whole numbers that add up to `total`, by Webster's method: each is as close to its share as whole numbers can be,
    and none shrinks when the total grows."""
    whole = sum(shares)
    twice = max(2 * total - len(shares), 0)
    counts = [(twice * share + whole) // (2 * whole) for share in shares]
    waiting = [(Fraction(2 * counts[k] + 1, share), k) for k, share in enumerate(shares) if share]
    heapq.heapify(waiting)
    for _ in range(total - sum(counts)):
        _, k = waiting[0]
        counts[k] += 1
        heapq.heapreplace(waiting, (Fraction(2 * counts[k] + 1, shares[k]), k))
    return counts


class Order:
    """Which source each sequence of a rank comes from.

    stages: the step before which each ends, and the weights of the sources in it. batch: sequences of all ranks in a step.
    """

    def __init__(
        self, stages: Sequence[tuple[int, Sequence[float]]], batch: int, rank: int, ranks: int, seed: int
    ) -> None:
        if batch % ranks:
            raise ValueError(f"{ranks} data-parallel ranks cannot share a batch of {batch} sequences")
        # Whole numbers, so that all ranks count the same.
        self.stages = [(end, [round(weight * 2**40) for weight in weights]) for end, weights in stages]
        self.batch, self.rank, self.ranks, self.seed = batch, rank, ranks, seed
        self.step, self.sources = -1, list[int]()

    def source(self, drawn: int) -> int:
        """Returns the number of the source of this rank's next sequence, after it has drawn so many since the run began."""
        step, place = divmod(drawn, self.batch // self.ranks)
        if step != self.step:
            self.step, self.sources = step, self.in_step(step)[self.rank :: self.ranks]
        return self.sources[place]

    def in_step(self, step: int) -> list[int]:
        """Returns the sources of a global batch, shuffled."""
        ends = [0, *(end for end, _ in self.stages)]
        stage = min(sum(end <= step for end in ends[1:]), len(self.stages) - 1)
        shares = self.stages[stage][1]
        before, after = (apportioned(shares, (step - ends[stage] + more) * self.batch) for more in (0, 1))
        sources = [k for k, (one, other) in enumerate(zip(before, after, strict=True)) for _ in range(other - one)]
        random.Random(f"{self.seed} {step}").shuffle(sources)
        return sources


def source_code() -> str:
    """Returns the code of the order, for an exported module that imports heapq, random and Fraction."""
    return "\n\n".join(inspect.getsource(part) for part in (apportioned, Order)).replace("Sequence[", "list[")
