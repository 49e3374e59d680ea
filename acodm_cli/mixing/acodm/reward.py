"""Reward of AC-ODM: importance-corrected, smoothed gradient alignment (arXiv 2505.23878, section 3.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acodm_cli.mixing.mixer import Array


class MovingAverage:
    """v_i ← ξ v_i + (1-ξ) x_i where x_i was observed, else v_i holds. A first observation starts its average, instead of
    averaging with an arbitrary zero."""

    def __init__(self, num_domains: int, ema: float) -> None:
        assert 0 <= ema < 1
        self.ema = ema
        self.value_K: Array = np.zeros(num_domains)
        self.seen_K: NDArray[np.bool_] = np.zeros(num_domains, dtype=bool)

    def update(self, observed_K: Array) -> None:
        """observed_K: NaN where there is no observation."""
        present_K = ~np.isnan(observed_K)
        averaged_K = np.where(self.seen_K, self.ema * self.value_K + (1 - self.ema) * observed_K, observed_K)
        self.value_K = np.where(present_K, averaged_K, self.value_K)
        self.seen_K = self.seen_K | present_K


class AlignmentReward:
    """r̂_i^t = ξ r̂_i^{t-1} + (1-ξ) W_i^t / P_i^{t-1}.

    W_i: gradient alignment of domain i; P_i: the probability with which the batch was drawn from it; ξ: `ema`.
    A domain absent from the batch gives no observation and keeps its value. The self term ‖g_i‖², which makes W_i the
    full row sum of the Gram matrix, has an average of its own, because a batch may give the one without the other.
    """

    def __init__(self, num_domains: int, ema: float) -> None:
        self.alignment = MovingAverage(num_domains, ema)
        self.self_term = MovingAverage(num_domains, ema)

    @property
    def seen_K(self) -> NDArray[np.bool_]:
        return self.alignment.seen_K

    def update(
        self, alignment_K: Array, weights_K: Array, present_K: NDArray[np.bool_], self_K: Array | None = None
    ) -> Array:
        """alignment_K: W. weights_K: P, positive where present. present_K: domains in the batch. self_K: unbiased
        ‖g_i‖², NaN where unknown; None to leave it out. Returns r̂. [K]"""
        assert (weights_K[present_K] > 0).all()
        inverse_K = np.divide(1.0, weights_K, out=np.full_like(weights_K, np.nan), where=present_K)
        self.alignment.update(alignment_K * inverse_K)
        if self_K is None:
            return self.alignment.value_K.copy()
        self.self_term.update(self_K * inverse_K)
        return self.alignment.value_K + self.self_term.value_K

    def state_dict(self) -> dict[str, Any]:
        averages = {"alignment": self.alignment, "self_term": self.self_term}
        return {
            name: {"value": torch.from_numpy(average.value_K), "seen": torch.from_numpy(average.seen_K)}
            for name, average in averages.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, average in (("alignment", self.alignment), ("self_term", self.self_term)):
            average.value_K, average.seen_K = state[name]["value"].numpy(), state[name]["seen"].numpy()


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
