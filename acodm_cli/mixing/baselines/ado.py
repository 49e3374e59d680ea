"""Adaptive Data Optimization: weights by the learning speed that per-domain scaling laws predict (Jiang et al., 2410.11820)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report

# The exponents that a fit chooses from. The authors hold theirs between 0.05 and 0.8 too.
EXPONENTS_A = np.linspace(0.05, 0.8, 76)


@dataclass(frozen=True)
class AdoSettings:
    """start_share: share of the run's steps with the prior's weights. refit_share: share between fits. ignore_share: share of the
    first steps that fits leave out. credit: s, the exponent of a domain's share in the history. history: decay of that history.
    gamma: γ₂, weight of the present preference against its average over time. least: smallest preference."""

    start_share: float = 0.05
    refit_share: float = 0.02
    ignore_share: float = 0.02
    credit: float = 0.5
    history: float = 0.9
    gamma: float = 0.1
    least: float = 0.01

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in vars(self).values()):
            raise ValueError("every option must be in [0, 1]")


@dataclass(frozen=True)
class ScalingLaw:
    """L(n) = ε + β n^(-a) per domain, ε the irreducible loss in nats and n sequences. Each [K]."""

    irreducible_K: Array
    scale_K: Array
    exponent_K: Array

    def speed(self, sequences: float) -> Array:
        """-dL/dn = a (L(n) - ε) / n. [K]"""
        return self.exponent_K * self.scale_K * sequences**-self.exponent_K / sequences


def fit_scaling_law(sequences_T: Array, losses_TK: Array) -> ScalingLaw:
    """For each exponent on a grid, ε ≥ 0 and β ≥ 0 by least squares in closed form; the exponent that fits best.

    The publication fits by L-BFGS from a grid of starts, on a Huber loss of logarithms of smoothed losses. A closed form has no
    optimiser that could end elsewhere, and finds the same law where losses follow one; where they do not, the early part weighs more here.
    """
    powers_AT = sequences_T[None, :] ** -EXPONENTS_A[:, None]
    centred_AT = powers_AT - powers_AT.mean(axis=1, keepdims=True)
    mean_K = losses_TK.mean(axis=0)
    slopes_AK = centred_AT @ (losses_TK - mean_K) / np.maximum((centred_AT**2).sum(axis=1), 1e-300)[:, None]
    slopes_AK = np.maximum(slopes_AK, 0.0)
    irreducible_AK = mean_K - slopes_AK * powers_AT.mean(axis=1)[:, None]
    # A negative irreducible loss is not one: the best line through the origin instead.
    through_AK = powers_AT @ losses_TK / (powers_AT**2).sum(axis=1)[:, None]
    slopes_AK = np.where(irreducible_AK < 0, np.maximum(through_AK, 0.0), slopes_AK)
    irreducible_AK = np.maximum(irreducible_AK, 0.0)
    # One exponent at a time: all at once would take gigabytes after 40,000 steps.
    errors_AK = np.stack(
        [
            ((irreducible_K + slopes_K * powers_T[:, None] - losses_TK) ** 2).sum(axis=0)
            for irreducible_K, slopes_K, powers_T in zip(irreducible_AK, slopes_AK, powers_AT, strict=True)
        ]
    )
    best_K = errors_AK.argmin(axis=0)
    domains = np.arange(losses_TK.shape[1])
    return ScalingLaw(irreducible_AK[best_K, domains], slopes_AK[best_K, domains], EXPONENTS_A[best_K])


class AdoMixer(Mixer):
    """ρ_i ∝ μ_i λ_i (-dL_i/dn) with prior μ and credit λ_i = h_i^s; executed are π = γ₂ ρ + (1-γ₂) ρ̄, ρ̄ the mean of ρ so far."""

    name = "ado"

    def __init__(self, prior_K: Array, settings: AdoSettings) -> None:
        self.own = settings
        self.prior_K = prior_K
        self.history_K = prior_K
        self.average_K = prior_K
        self.weights_K = prior_K
        self.law: ScalingLaw | None = None
        self.sequences: list[float] = []
        self.losses: list[Array] = []

    def weights(self, observation: Observation) -> Array:
        return self.weights_K

    def observe(self, feedback: Feedback) -> Report:
        own, after = self.own, feedback.next_observation
        shares_K = feedback.samples_K / feedback.samples_K.sum()
        self.history_K = own.history * self.history_K + (1 - own.history) * shares_K
        seen = (self.sequences[-1] if self.sequences else 0.0) + feedback.samples_K.sum()
        self.sequences.append(seen)
        self.losses.append(after.losses_K)
        every = max(1, round(own.refit_share * after.total_steps))
        first = round(own.ignore_share * after.total_steps)
        if after.step < own.start_share * after.total_steps or after.step - first < 4:
            return Report()
        if self.law is None or after.step % every == 0:
            self.law = fit_scaling_law(np.array(self.sequences[first:]), np.stack(self.losses[first:]))
        speed_K = self.law.speed(seen)
        preference_K = self.prior_K * self.history_K**own.credit * speed_K
        total = preference_K.sum()
        preference_K = self.prior_K if total == 0 else preference_K / total
        preference_K = np.maximum(preference_K, min(own.least, 1 / len(preference_K)))
        preference_K = preference_K / preference_K.sum()
        self.weights_K = (1 - own.gamma) * self.average_K + own.gamma * preference_K
        self.average_K = self.average_K + (preference_K - self.average_K) / (after.step + 1)
        return Report(reward_K=speed_K)

    def settings(self) -> dict[str, Any]:
        return vars(self.own)

    def state_dict(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            name: torch.from_numpy(getattr(self, f"{name}_K")) for name in ("history", "average", "weights")
        }
        if self.losses:
            arrays |= {
                "sequences": torch.tensor(self.sequences, dtype=torch.float64),
                "losses": torch.from_numpy(np.stack(self.losses)),
            }
        if self.law is not None:
            arrays["law"] = {name: torch.from_numpy(value) for name, value in vars(self.law).items()}
        return arrays

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("history", "average", "weights"):
            setattr(self, f"{name}_K", state[name].numpy())
        self.sequences = state["sequences"].tolist() if "sequences" in state else []
        self.losses = list(state["losses"].numpy()) if "losses" in state else []
        law = state.get("law")
        self.law = ScalingLaw(**{name: value.numpy() for name, value in law.items()}) if law else None
