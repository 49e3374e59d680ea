"""State of AC-ODM: s^t = (n, t, ℓ, Δℓ, ‖ω‖, ‖Δω‖) (arXiv 2505.23878, section 3.2), and its normalisation.

Every block is scale-free, so that a policy learned on one model, batch size and budget can read another's state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acodm_cli.mixing.mixer import Array, Observation


def state_size(num_domains: int, num_depths: int) -> int:
    return 3 * num_domains + 2 * num_depths + 1


def encode_state(observation: Observation) -> Array:
    """s^t as a vector. [3K + 2L + 1]

    n: share of the last batch. t: progress in [0, 1). ℓ: loss over the loss of a uniform prediction. Δℓ: the
    difference to the previous step's loss (not to the first step's), in the same unit. ‖ω‖: logarithm of the
    growth since the start of the run. ‖Δω‖: size of the last update (not the drift since the start) over the
    weights' own.
    """
    o = observation
    drawn = max(float(o.samples_K.sum()), 1.0)
    return np.concatenate(
        [
            o.samples_K / drawn,
            [o.progress],
            o.losses_K / o.max_loss,
            (o.losses_K - o.previous_losses_K) / o.max_loss,
            np.log(o.weight_norms_L / o.initial_norms_L),
            o.update_norms_L / o.weight_norms_L,
        ]
    )


class RunningNormalizer:
    """Standardises states with their running mean and variance (Welford), clipped to ±`limit`.

    Stored with the policy: the target's states are read on the scale on which the actor was trained.
    """

    def __init__(self, size: int, limit: float = 5.0) -> None:
        self.limit = limit
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean_S = torch.zeros(size, dtype=torch.float64)
        self.m2_S = torch.zeros(size, dtype=torch.float64)

    def update(self, state_S: Array) -> None:
        state = torch.from_numpy(state_S)
        self.count += 1
        delta = state - self.mean_S
        self.mean_S += delta / self.count
        self.m2_S += delta * (state - self.mean_S)

    def __call__(self, states_NS: Tensor) -> Tensor:
        """float32 states, any leading shape."""
        deviation_S = (self.m2_S / self.count.clamp(min=1)).sqrt()
        # A feature that has not moved yet carries no information: its deviation of zero becomes an output of zero.
        inverse_S = torch.where(deviation_S > 1e-8, 1 / deviation_S.clamp(min=1e-8), 0.0)
        normal = (states_NS - self.mean_S) * inverse_S
        return normal.clamp(-self.limit, self.limit).float()

    def tensors(self) -> dict[str, Tensor]:
        return {"count": self.count, "mean": self.mean_S, "m2": self.m2_S}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.count = tensors["count"].clone()
        self.mean_S = tensors["mean"].clone()
        self.m2_S = tensors["m2"].clone()
