"""The reward of AC-ODM: importance-corrected, smoothed gradient alignment (arXiv 2505.23878, section 3.2)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from acodm_cli.alignment.gram import gradient_alignment
from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array


class PairAverage:
    """The moving average of a matrix of pairs of domains, with the unbiased squares on its diagonal.

    A pair counts only in batches that hold both domains: where sums over the domains that happen to be in a batch are averaged,
    domains that are often drawn together seem aligned, and are then drawn even more.

    ema: ξ, the share that the average keeps per step.
    """

    def __init__(self, num_domains: int, ema: float) -> None:
        self.average = MovingAverage((num_domains, num_domains), ema)

    @property
    def seen_K(self) -> NDArray[np.bool_]:
        """Whether each domain was seen together with another one. [K]"""
        others_KK = ~np.eye(len(self.average.seen), dtype=bool)
        return np.any(self.average.seen & others_KK, axis=1)

    def update(self, pairs_KK: Array, present_K: NDArray[np.bool_], self_K: Array | None) -> None:
        """Takes a batch into the average. pairs_KK: the values of pairs; their diagonal is not used. present_K: the domains in the
        batch. self_K: the diagonal, NaN where it is unknown; None if it is not wanted."""
        both_KK = present_K[:, None] & present_K[None, :]
        observed_KK = np.where(both_KK, pairs_KK, np.nan)
        np.fill_diagonal(observed_KK, np.nan if self_K is None else self_K)
        self.average.update(observed_KK)

    def value(self) -> Array:
        """Returns the average. A pair that was never seen gets the mean of the other pairs in its row, an unknown square that
        of the known ones. [K, K]"""
        value_KK, seen_KK = self.average.value, self.average.seen
        diagonal_KK = np.eye(len(value_KK), dtype=bool)
        pairs_KK = seen_KK & ~diagonal_KK
        of_row_K1 = np.where(pairs_KK, value_KK, 0).sum(1, keepdims=True) / np.maximum(
            pairs_KK.sum(1, keepdims=True), 1
        )
        known_K = np.diag(seen_KK)
        square = np.diag(value_KK)[known_K].mean() if known_K.any() else 0.0
        return np.where(seen_KK, value_KK, np.where(diagonal_KK, square, of_row_K1))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the average."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.average.load_state_dict(state)


class AlignmentReward:
    """The reward of the paper: r̂_i^t = ξ r̂_i^{t-1} + (1-ξ) W_i^t / P_i^{t-1}. The self term adds the same average of ‖g_i‖² / P_i.

    W_i = Σ_{j≠i} H_ij is the gradient alignment of domain i, P_i the probability with which the batch was drawn from
    it, and ξ is `ema`. An average is kept of each H_ij / P_i, and the averages are summed, which is the same where every batch
    holds every domain.
    """

    def __init__(self, num_domains: int, ema: float) -> None:
        self.pairs = PairAverage(num_domains, ema)

    @property
    def seen_K(self) -> NDArray[np.bool_]:
        """Whether each domain was seen together with another one. [K]"""
        return self.pairs.seen_K

    def update(
        self, gram_KK: Array, weights_K: Array, present_K: NDArray[np.bool_], self_K: Array | None = None
    ) -> Array:
        """Takes a batch into the averages and returns r̂. [K]

        gram_KK: H of the batch. weights_K: P, positive where present. present_K: the domains in the batch. self_K: the
        unbiased ‖g_i‖², NaN where it is unknown; None to leave out the self term.
        """
        assert (weights_K[present_K] > 0).all()
        inverse_K = np.divide(1.0, weights_K, out=np.full_like(weights_K, np.nan), where=present_K)
        self.pairs.update(gram_KK * inverse_K[:, None], present_K, None if self_K is None else self_K * inverse_K)
        pairs_KK = self.pairs.value()
        return gradient_alignment(pairs_KK) if self_K is None else pairs_KK.sum(axis=1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the averages."""
        return self.pairs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.pairs.load_state_dict(state)


def domain_costs(losses_K: Array, objective: Literal["loss", "perplexity"]) -> Array:
    """Returns what a nat of each domain's loss costs: d objective / d ℓ_i, scaled to a mean of 1. [K]

    For the mean loss, all costs are the same. For the mean perplexity Σ exp(ℓ_i) / K, they are in proportion to
    exp(ℓ_i). With costs c_j, the reward is the first-order decrease of the objective: Σ_j c_j ⟨g_i, g_j⟩ instead of
    Σ_j ⟨g_i, g_j⟩.
    """
    if objective == "loss":
        return np.ones_like(losses_K)
    costs_K = np.exp(losses_K - losses_K.max())
    return costs_K / costs_K.mean()


def relative(reward_K: Array, seen_K: NDArray[np.bool_]) -> Array:
    """Returns the rewards over their mean size, minus 1, clipped to ±3; zero for domains that were not seen. [K]

    Like z-scores, they do not depend on the scale of the gradients. But where all rewards are alike, these are all near
    zero, while z-scores would blow up the noise that is left, and the weights would follow it.
    """
    size = np.abs(reward_K[seen_K]).mean() if seen_K.any() else 0.0
    if size == 0:
        return np.zeros_like(reward_K)
    return np.where(seen_K, (reward_K / size - 1).clip(-3, 3), 0.0)


def standardise(reward_K: Array, seen_K: NDArray[np.bool_]) -> Array:
    """Returns the z-scores of the rewards over the domains seen so far, zero for the others. [K]

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
