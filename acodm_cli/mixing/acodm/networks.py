"""Actor μ(s) and critic Q(s, a) of AC-ODM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acodm_cli.mixing.acodm.settings import AgentSettings


def mlp(inputs: int, outputs: int, hidden: int, layers: int) -> nn.Sequential:
    """`layers` hidden layers of Linear, LayerNorm, ReLU, then a linear output that starts at zero."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        modules += [nn.Linear(inputs if layer == 0 else hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()]
    return nn.Sequential(*modules, zero_linear(hidden, outputs))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Actor(nn.Module):
    """μ(s): state to domain weights.

    The network's K outputs are squashed to ±`logit_bound` (if bounded), mean-centred and added to log(prior).
    They start at zero, so the policy starts as exactly the prior. A share f of the prior is mixed in, so that
    every domain is drawn: w = (1 - f) softmax(logits) + f prior, which for a uniform prior is the floor ε = f/K.
    """

    prior_K: Tensor

    def __init__(self, state_size: int, prior_K: Tensor, settings: AgentSettings) -> None:
        super().__init__()
        num_domains = len(prior_K)
        self.network = mlp(state_size, num_domains, settings.hidden, settings.layers)
        self.logit_bound = settings.logit_bound
        self.floor_share = settings.floor_share
        self.register_buffer("prior_K", prior_K.float())

    def offsets(self, states_NS: Tensor) -> Tensor:
        """Mean-centred logit offsets from the prior. [N, K]"""
        raw_NK = self.network(states_NS)
        if self.logit_bound is not None:
            raw_NK = self.logit_bound * torch.tanh(raw_NK / self.logit_bound)
        return raw_NK - raw_NK.mean(dim=-1, keepdim=True)

    def weights(self, offsets_NK: Tensor) -> Tensor:
        """Logit offsets to weights on the simplex. [N, K]"""
        probabilities_NK = torch.softmax(self.prior_K.log() + offsets_NK, dim=-1)
        return (1 - self.floor_share) * probabilities_NK + self.floor_share * self.prior_K

    def forward(self, states_NS: Tensor) -> Tensor:
        return self.weights(self.offsets(states_NS))


class Critic(nn.Module):
    """Q(s, a) ∈ R^K: one value per domain; the policy's value is Σ α_i Q_i.

    With `quadratic_action`, a linear map of (a, a²) is added to the network's output: how value depends on the
    action can then be learned from a few hundred transitions, while the network still learns from the state.
    Values start at zero for every domain alike, so that the actor is not first driven by differences between the
    domains' values that only come from initialisation.
    """

    prior_K: Tensor

    def __init__(self, state_size: int, prior_K: Tensor, settings: AgentSettings) -> None:
        super().__init__()
        num_domains = len(prior_K)
        self.network = mlp(state_size + num_domains, num_domains, settings.hidden, settings.layers)
        self.quadratic = zero_linear(2 * num_domains, num_domains) if settings.quadratic_action else None
        self.register_buffer("prior_K", prior_K.float())

    def forward(self, states_NS: Tensor, weights_NK: Tensor) -> Tensor:
        # Weights are of the order 1/K: centred and scaled they are of the order 1, as the states are.
        action_NK = (weights_NK - self.prior_K) * self.prior_K.shape[0]
        values_NK = self.network(torch.cat([states_NS, action_NK], dim=-1))
        if self.quadratic is not None:
            values_NK = values_NK + self.quadratic(torch.cat([action_NK, action_NK.square()], dim=-1))
        return values_NK
