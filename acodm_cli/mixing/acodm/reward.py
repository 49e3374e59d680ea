"""The reward of AC-ODM: importance-corrected, smoothed gradient alignment (arXiv 2505.23878, section 3.2)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
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


class GuidedReward:
    """What one more share of domain i does to Σ_j c_j L_j, by averages over steps of

    - h_ij = ⟨g_i, g_j⟩, with the gradient of target j's guide text, which is the first-order decrease of L_j by a gradient step;
    - H_ij = ⟨g_i, g_j⟩ of domains, and σ_i², the variance of the gradient of one sequence of domain i.

    AdamW and clipping take steps of a fixed size, so a large gradient does not move the model further: it only turns the step its
    way. So the gain is divided by the size of the domain's gradient in a batch of B sequences, s_i = √(‖g_i‖² + σ_i²/B). A
    share κ, `crowding`, of what the mixture Gα gains by now is subtracted, as far as domain i goes the same way: with κ = 1 it is
    the derivative of ⟨∇J, Gα⟩ / ‖Gα‖.

    ema: the share that the averages keep per look.
    """

    def __init__(self, num_domains: int, num_targets: int, ema: float, gram_ema: float) -> None:
        self.ema = ema
        self.counts_KJ = np.zeros((num_domains, num_targets))
        self.sums_KJ = np.zeros((num_domains, num_targets))
        self.spread = MovingAverage((num_targets,), 0.98)
        self.pairs = PairAverage(num_domains, gram_ema)
        self.noise = MovingAverage((num_domains,), gram_ema)

    @property
    def seen_K(self) -> NDArray[np.bool_]:
        """Whether each domain was ever seen together with a guide. [K]"""
        return np.any(self.counts_KJ > 0, axis=1)

    @property
    def gains_KJ(self) -> Array:
        """The averages of h, zero where it was never seen. [K, J]"""
        return np.divide(self.sums_KJ, self.counts_KJ, out=np.zeros_like(self.sums_KJ), where=self.counts_KJ > 0)

    def update(self, gram_KK: Array, self_K: Array | None, guide_KJ: Array | None, samples_K: Array) -> None:
        """Takes a step into the averages. gram_KK: H of the batch. self_K: the unbiased ‖g_i‖², NaN where it is unknown. guide_KJ:
        h, NaN where it is unknown; None in steps without a guide pass. samples_K: the sequences of each domain."""
        present_K = samples_K > 0
        self.pairs.update(gram_KK, present_K, self_K)
        squares_K = np.diag(self.pairs.value())
        self.noise.update(np.where(present_K, ((np.diag(gram_KK) - squares_K) * samples_K).clip(min=0), np.nan))
        if guide_KJ is None:
            return
        samples_KJ = np.where(np.isnan(guide_KJ), 0.0, samples_K[:, None])
        guide_KJ = np.nan_to_num(guide_KJ)
        again_KJ = (samples_KJ > 0) & (self.counts_KJ > 0)
        off_KJ = (guide_KJ - self.gains_KJ) / self.sizes(float(samples_K.sum()))[:, None]
        number_J = again_KJ.sum(axis=0)
        squares_J = (np.where(again_KJ, samples_KJ, 0.0) * off_KJ**2).sum(axis=0)
        self.spread.update(np.divide(squares_J, number_J, out=np.full(len(number_J), np.nan), where=number_J > 0))
        # What was seen long ago counts less, and as less evidence.
        self.counts_KJ = self.ema * self.counts_KJ + samples_KJ
        self.sums_KJ = self.ema * self.sums_KJ + samples_KJ * guide_KJ

    def sizes(self, batch: float) -> Array:
        """Returns s, the size of each domain's gradient in a batch of so many sequences. [K]"""
        noise_K = np.where(self.noise.seen, self.noise.value, self.noise.value[self.noise.seen].mean())
        squares_K = np.diag(self.pairs.value()).clip(min=0) + noise_K / batch
        return np.sqrt(squares_K.clip(min=1e-4 * squares_K.max()))

    def value(
        self, costs_J: Array, weights_K: Array, batch: float, crowding: float, relative: bool, shrink: bool
    ) -> tuple[Array, float]:
        """Returns (r̂, zero for domains that were not seen [K]; the mean size of what it would be with κ = 0).

        costs_J: c. weights_K: α, as executed. batch: B."""
        gain_K = self.gains_KJ @ costs_J
        sizes_K = self.sizes(batch) if relative else np.ones_like(gain_K)
        scale = float(np.abs(gain_K / sizes_K)[self.seen_K].mean()) if self.seen_K.any() else 0.0
        mixed_K = self.pairs.value() @ weights_K
        square = float(weights_K @ mixed_K)
        crowded_K = gain_K @ weights_K / square * mixed_K if square > 0 else 0.0
        reward_K = (gain_K - crowding * crowded_K) / sizes_K
        if not shrink:
            return np.where(self.seen_K, reward_K, 0.0), scale
        mean = float(reward_K @ weights_K)
        off_K = reward_K - mean
        variance_K = (self.spread.value * costs_J**2 / self.counts_KJ.clip(min=1e-9)).sum(axis=1)
        if not relative:
            variance_K = variance_K * self.sizes(batch) ** 2
        believed_K = off_K**2 / (off_K**2 + variance_K).clip(min=1e-30)
        return np.where(self.seen_K, mean + believed_K * off_K, 0.0), scale

    _AVERAGES = ("spread", "pairs", "noise")

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the averages."""
        sums = {name: torch.from_numpy(getattr(self, name)) for name in ("counts_KJ", "sums_KJ")}
        return sums | {name: getattr(self, name).state_dict() for name in self._AVERAGES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.counts_KJ, self.sums_KJ = state["counts_KJ"].numpy(), state["sums_KJ"].numpy()
        for name in self._AVERAGES:
            getattr(self, name).load_state_dict(state[name])


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
