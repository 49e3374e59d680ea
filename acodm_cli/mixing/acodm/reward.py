"""Reward of AC-ODM: importance-corrected, smoothed gradient alignment (arXiv 2505.23878, section 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acodm_cli.mixing.mixer import Array


class AlignmentReward:
    """r̂_i^t = ξ r̂_i^{t-1} + (1-ξ) W_i^t / P_i^{t-1}.

    W_i: gradient alignment of domain i; P_i: the probability with which the batch was drawn from it; ξ: `ema`.
    A domain absent from the batch gives no observation and keeps its value. A domain's first observation starts
    its average, instead of averaging with an arbitrary zero.
    """

    def __init__(self, num_domains: int, ema: float) -> None:
        assert 0 <= ema < 1
        self.ema = ema
        self.value_K: Array = np.zeros(num_domains)
        self.seen_K: NDArray[np.bool_] = np.zeros(num_domains, dtype=bool)

    def update(self, alignment_K: Array, weights_K: Array, present_K: NDArray[np.bool_]) -> Array:
        """alignment_K: W. weights_K: P, positive where present. present_K: domains in the batch. Returns r̂. [K]"""
        assert (weights_K[present_K] > 0).all()
        corrected_K = np.divide(alignment_K, weights_K, out=np.zeros_like(alignment_K), where=present_K)
        averaged_K = self.ema * self.value_K + (1 - self.ema) * corrected_K
        new_K = np.where(self.seen_K, averaged_K, corrected_K)
        self.value_K = np.where(present_K, new_K, self.value_K)
        self.seen_K = self.seen_K | present_K
        return self.value_K.copy()


def standardise(reward_K: Array, seen_K: NDArray[np.bool_]) -> Array:
    """z-scores over the domains seen so far, zero for the others.

    Gradient norms change by orders of magnitude during training; z-scores give the critic targets of one scale.
    Their unweighted mean is always zero, so an objective must weight them by α (see `agent.actor_objective`).
    """
    if seen_K.sum() < 2:
        return np.zeros_like(reward_K)
    seen = reward_K[seen_K]
    deviation = seen.std()
    if deviation == 0:
        return np.zeros_like(reward_K)
    return np.where(seen_K, (reward_K - seen.mean()) / deviation, 0.0)
