"""The state of AC-ODM, s^t = (n, t, ℓ, Δℓ, ‖ω‖, ‖Δω‖) (arXiv 2505.23878, section 3.2), and its normalisation.

Every part of the state is scale-free, so that a policy learned on one model, batch size and budget can read the state
of another run. Only this file knows the layout of the state; the others take it as F features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acodm_cli.mixing.mixer import Array, Observation


def state_size(num_domains: int, num_depths: int) -> int:
    """Returns F, the number of features of a state."""
    return 3 * num_domains + 2 * num_depths + 1


def relative_depths(num_depths: int) -> tuple[float, ...]:
    """Returns where the state reads weight norms: evenly spaced from the first block (0) to the last (1)."""
    if num_depths == 1:
        return (1.0,)
    return tuple(index / (num_depths - 1) for index in range(num_depths))


def encode_state(observation: Observation) -> Tensor:
    """Returns s^t as a float64 vector. [F] = [3K + 2L + 1]

    n: each domain's share of the last batch. t: the progress of the run, from 0 to 1. ℓ: the loss over the loss of a
    uniform prediction. Δℓ: the difference from the previous step's loss (not from the first step's), in the same unit.
    ‖ω‖: the logarithm of the growth of the weight norm since the start of the run. ‖Δω‖: the norm of the last update
    (not of the drift since the start) over the norm of the weights.
    """
    o = observation
    drawn = max(float(o.samples_K.sum()), 1.0)
    blocks: list[Array] = [
        o.samples_K / drawn,
        np.array([o.progress]),
        o.losses_K / o.max_loss,
        (o.losses_K - o.previous_losses_K) / o.max_loss,
        np.log(o.weight_norms_L / o.initial_norms_L),
        o.update_norms_L / o.weight_norms_L,
    ]
    return torch.from_numpy(np.concatenate(blocks))


class RunningNormalizer:
    """Standardises states with their running mean and variance (Welford), and clips them to ±`limit`.

    It is stored with the policy, so that the target's states are read on the scale on which the actor was trained.
    """

    def __init__(self, size: int, limit: float = 5.0) -> None:
        self.limit = limit
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean_F = torch.zeros(size, dtype=torch.float64)
        self.m2_F = torch.zeros(size, dtype=torch.float64)

    def update(self, state_F: Tensor) -> None:
        """Takes one more state into account."""
        self.count += 1
        delta_F = state_F - self.mean_F
        self.mean_F += delta_F / self.count
        self.m2_F += delta_F * (state_F - self.mean_F)

    def __call__(self, states_NF: Tensor) -> Tensor:
        """Returns the standardised states in float32. They may have any leading shape."""
        deviation_F = (self.m2_F / self.count.clamp(min=1)).sqrt()
        # A feature that has not moved yet carries no information: its deviation of zero becomes an output of zero.
        inverse_F = torch.where(deviation_F > 1e-8, 1 / deviation_F.clamp(min=1e-8), 0.0)
        normal_NF = (states_NF - self.mean_F) * inverse_F
        return normal_NF.clamp(-self.limit, self.limit).float()

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything that the normaliser has learned, by name."""
        return {"count": self.count, "mean": self.mean_F, "m2": self.m2_F}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continues from what `tensors` gave."""
        self.count = tensors["count"].clone()
        self.mean_F = tensors["mean"].clone()
        self.m2_F = tensors["m2"].clone()


def forget_last_action(states_NF: Tensor, num_domains: int, generator: torch.Generator) -> Tensor:
    """Returns the states with their shares of the last batch shuffled among them. [N, F]

    Otherwise an actor that is fitted to executed actions would read its own last action from the shares, and repeat it.
    """
    forgetful_NF = states_NF.clone()
    shuffled_N = torch.randperm(len(states_NF), generator=generator)
    forgetful_NF[:, :num_domains] = states_NF[shuffled_N, :num_domains]
    return forgetful_NF
