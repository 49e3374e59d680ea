"""Rewards for optimisers that take steps of a fixed size: of domains' gradients alone, and with those of targets' guide text.

Shape letters: K domains, J targets, B sequences of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acodm_cli.mixing.acodm.reward import PairAverage
from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array

# The share that the average of the looks' own noise keeps per look; it changes slowly.
_SPREAD_EMA = 0.9
# ‖Gα‖² counts as at least this share of Σ_i α_i² n_i, what it would be if the domains' gradients had nothing in common.
_LEAST_SQUARE = 0.1


class FixedStep:
    """Turns gains of gradient steps into gains of steps of a fixed size: r_i = (h_i - κ (h·α) / (αᵀHα) · (Hα)_i) / s_i.

    h_i = ⟨g_i, ∇J⟩ is the first-order decrease of J by a gradient step on domain i. But AdamW and clipping take steps of a fixed
    size, so that a large gradient does not go further, but crowds out the others. So the gain is divided by the size of gradients
    that the optimiser has to scale, the domain's own and the mixture's, in batches of B sequences: s_i² = n_i + Σ_j α_j n_j with
    n_i = ‖g_i‖² + σ_i² / B. And a share κ is subtracted of what the mixed gradient Gα gains already, as far as domain i goes the
    same way: with κ = 1 and without s, r is the derivative of ⟨∇J, Gα⟩ / ‖Gα‖ by α, times ‖Gα‖.

    pairs: the average of H, ‖g_i‖² on its diagonal without noise. noise: the average of σ_i², the variance of the gradient of one
    sequence. ema: the share that they keep per step. crowding: κ.
    """

    def __init__(self, num_domains: int, ema: float, crowding: float) -> None:
        self.crowding = crowding
        self.pairs = PairAverage(num_domains, ema)
        self.noise = MovingAverage((num_domains,), ema)

    @property
    def seen_K(self) -> NDArray[np.bool_]:
        """Whether each domain was seen together with another one. [K]"""
        return self.pairs.seen_K

    def update(self, gram_KK: Array, self_K: Array, samples_K: Array) -> None:
        """Takes a step into the averages. gram_KK: H of the batch. self_K: the unbiased ‖g_i‖², NaN where it is unknown.
        samples_K: the sequences of each domain."""
        present_K = samples_K > 0
        self.pairs.update(gram_KK, present_K, self_K)
        squares_K = np.diag(self.pairs.value())
        noise_K = ((np.diag(gram_KK) - squares_K) * samples_K).clip(min=0)
        self.noise.update(np.where(present_K, noise_K, np.nan))

    def squares(self, batch: float) -> Array:
        """Returns n, the mean square of each domain's gradient in a batch of so many sequences. [K]"""
        seen_K = self.noise.seen
        noise_K = np.where(seen_K, self.noise.value, self.noise.value[seen_K].mean())
        return np.diag(self.pairs.value()).clip(min=0) + noise_K / batch

    def sizes(self, weights_K: Array, batch: float) -> Array:
        """Returns s. weights_K: α, as executed. batch: B. [K]"""
        squares_K = self.squares(batch)
        return np.sqrt(squares_K + weights_K @ squares_K)

    def reward(self, gain_K: Array, weights_K: Array, batch: float) -> tuple[Array, float]:
        """Returns (r [K]; the mean of |h_i| / s_i, by which it is to be scaled). gain_K: h. weights_K: α, as executed. batch: B."""
        mixed_K = self.pairs.value() @ weights_K
        # An unbiased estimate of ‖Gα‖² may be next to nothing, or below.
        least = _LEAST_SQUARE * float(weights_K**2 @ self.squares(batch))
        already_K = gain_K @ weights_K / max(float(weights_K @ mixed_K), least) * mixed_K
        sizes_K = self.sizes(weights_K, batch)
        return (gain_K - self.crowding * already_K) / sizes_K, float(np.abs(gain_K / sizes_K).mean())

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the averages."""
        return {"pairs": self.pairs.state_dict(), "noise": self.noise.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.pairs.load_state_dict(state["pairs"])
        self.noise.load_state_dict(state["noise"])


class GuidedReward:
    """The reward by targets, r̂: that of `FixedStep` for h_i = Σ_j c_j ⟨g_i, g_j⟩, with the gradients of the targets' guide text, as far
    as it stands out from its noise.

    Rare domains are seen in few looks. An advantage a_i = r_i - Σ_j α_j r_j counts by the share max(0, 1 - v_i / a_i²), so that a
    domain of which little is known is neither preferred nor avoided. v_i is the variance of one sequence over the number of sequences
    that were looked at, of which the old ones count less: at a steady rate it is nearly twice the variance of the average, and it grows
    while a domain is not seen. Targets are taken to share their noise, which comes from the same g_i.

    ema: the share that sums over looks keep per look. gram_ema: the share that averages over steps keep per step. crowding: κ.
    """

    def __init__(self, num_domains: int, num_targets: int, ema: float, gram_ema: float, crowding: float) -> None:
        self.ema = ema
        self.fixed_step = FixedStep(num_domains, gram_ema, crowding)
        # Sequences that were looked at, and Σ ⟨g_i, g_j⟩ over them. What was seen long ago counts less, and as less evidence.
        self.counts_KJ: Array = np.zeros((num_domains, num_targets))
        self.sums_KJ: Array = np.zeros((num_domains, num_targets))
        # The variance of ⟨g_i, g_j⟩ / s_i for one sequence.
        self.spread = MovingAverage((num_targets,), _SPREAD_EMA)

    @property
    def seen_K(self) -> NDArray[np.bool_]:
        """Whether each domain was ever seen together with a guide. [K]"""
        return np.any(self.counts_KJ > 0, axis=1)

    @property
    def gains_KJ(self) -> Array:
        """The averages of ⟨g_i, g_j⟩, zero where it was never seen. [K, J]"""
        return np.divide(self.sums_KJ, self.counts_KJ, out=np.zeros_like(self.sums_KJ), where=self.counts_KJ > 0)

    def _gains(self, weights_K: Array) -> Array:
        """The same, with the mixture's mean for what was never seen. [K, J]"""
        seen_KJ, gains_KJ = self.counts_KJ > 0, self.gains_KJ
        of_seen_J = (seen_KJ * weights_K[:, None]).sum(axis=0).clip(min=1e-30)
        return np.where(seen_KJ, gains_KJ, weights_K @ gains_KJ / of_seen_J)

    def update(self, gram_KK: Array, self_K: Array, guide_KJ: Array | None, samples_K: Array) -> None:
        """Takes a step into the averages. gram_KK: H of the batch. self_K: the unbiased ‖g_i‖², NaN where it is unknown. guide_KJ:
        ⟨g_i, g_j⟩, NaN where it is unknown; None in steps without a guide pass. samples_K: the sequences of each domain."""
        self.fixed_step.update(gram_KK, self_K, samples_K)
        if guide_KJ is not None:
            self._look(guide_KJ, samples_K)

    def _look(self, guide_KJ: Array, samples_K: Array) -> None:
        drawn = samples_K.sum()
        samples_KJ = np.where(np.isnan(guide_KJ), 0.0, samples_K[:, None])
        guide_KJ = np.nan_to_num(guide_KJ)
        again_KJ = (samples_KJ > 0) & (self.counts_KJ > 0)
        off_KJ = (guide_KJ - self.gains_KJ) / self.fixed_step.sizes(samples_K / drawn, drawn)[:, None]
        squares_KJ = np.where(again_KJ, samples_KJ * off_KJ**2, np.nan)
        if again_KJ.any(axis=0).all():
            self.spread.update(np.nanmean(squares_KJ, axis=0))
        self.counts_KJ = self.ema * self.counts_KJ + samples_KJ
        self.sums_KJ = self.ema * self.sums_KJ + samples_KJ * guide_KJ

    def value(self, costs_J: Array, weights_K: Array, batch: float) -> tuple[Array, float]:
        """Returns (r̂ [K]; what it is to be scaled by, zero before the first look).

        costs_J: c. weights_K: α, as executed. batch: B."""
        if not self.seen_K.any():
            return np.zeros_like(weights_K), 0.0
        gain_K = self._gains(weights_K) @ costs_J
        reward_K, size = self.fixed_step.reward(gain_K, weights_K, batch)
        of_seen_K = np.where(self.seen_K, weights_K, 0.0)
        mean = float(reward_K @ of_seen_K / max(of_seen_K.sum(), 1e-30))
        advantage_K = reward_K - mean
        variance_K = (np.sqrt(self.spread.value / self.counts_KJ.clip(min=1e-9)) @ costs_J) ** 2
        believed_K = (1 - variance_K / (advantage_K**2).clip(min=1e-30)).clip(min=0)
        # One look says nothing of its noise.
        believed_K = np.where(self.seen_K & self.spread.seen.all(), believed_K, 0.0)
        return mean + believed_K * advantage_K, size

    _AVERAGES = ("spread", "fixed_step")

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the averages."""
        sums = {name: torch.from_numpy(getattr(self, name)) for name in ("counts_KJ", "sums_KJ")}
        return sums | {name: getattr(self, name).state_dict() for name in self._AVERAGES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.counts_KJ, self.sums_KJ = state["counts_KJ"].numpy(), state["sums_KJ"].numpy()
        for name in self._AVERAGES:
            getattr(self, name).load_state_dict(state[name])
