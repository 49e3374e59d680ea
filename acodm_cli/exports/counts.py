"""Whole numbers of sequences, computed from weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acodm_cli.exports.plan import Array

# So many samples are followed one by one. After them, counts are taken to grow by the weights. Every count stays within
# num_datasets - 1 samples of its weight's share, so the error of a share is below num_datasets / MOST_FOLLOWED.
MOST_FOLLOWED = 1 << 16


def largest_remainder(weights_K: Array, total: int) -> NDArray[np.int64]:
    """Returns the whole numbers with sum `total` that are closest to the weights' shares of it. [K]"""
    exact_K = weights_K / weights_K.sum() * total
    counts_K = np.floor(exact_K).astype(np.int64)
    counts_K[np.argsort(counts_K - exact_K, kind="stable")[: total - int(counts_K.sum())]] += 1
    return counts_K


def blend_counts(weights_N: list[Array], sizes_N: list[int]) -> list[Array]:
    """Returns how many of the first sizes_N[n] samples of each blend n come from each of its datasets. [K] for every n

    weights_N: the weights of each blend, positive and with sum 1.

    The rule is that of Megatron-LM, which nanotron took over: every sample comes from the dataset that is furthest
    behind its weight. Sample i is drawn from the dataset with the largest weight · max(i, 1) - samples drawn so far,
    the first of equals. No sample depends on how long the blend is.
    """
    widest = max(len(weights_K) for weights_K in weights_N)
    weights_NK = np.stack([np.pad(weights_K, (0, widest - len(weights_K))) for weights_K in weights_N])
    # With an infinite count, the padding of a row is never behind.
    counts_NK = np.where(weights_NK > 0, 0, np.inf)
    followed_N = np.minimum(np.array(sizes_N, dtype=np.int64), MOST_FOLLOWED)
    ends: set[int] = set(followed_N.tolist())
    rows_N: NDArray[np.intp] = np.arange(len(weights_N))
    found_NK = np.zeros_like(weights_NK)
    for index in range(max(ends)):
        behind_NK = weights_NK * max(index, 1) - counts_NK
        counts_NK[rows_N, behind_NK.argmax(axis=1)] += 1
        if index + 1 in ends:
            found_NK[followed_N == index + 1] = counts_NK[followed_N == index + 1]
    found_NK += weights_NK * (np.array(sizes_N) - followed_N)[:, None]
    return [row_K[: len(weights_K)] for row_K, weights_K in zip(found_NK, weights_N, strict=True)]
