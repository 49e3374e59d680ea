"""The actor μ(s) and the critic Q(s, a) of AC-ODM. Shape letters: N states, F features of a state, K domains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acodm_cli.mixing.acodm.settings import AgentSettings


def mlp(inputs: int, outputs: int, hidden: int, layers: int) -> nn.Sequential:
    """Returns `layers` hidden layers of Linear, LayerNorm, ReLU, then a linear output that starts at zero."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        modules += [nn.Linear(inputs if layer == 0 else hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()]
    return nn.Sequential(*modules, zero_linear(hidden, outputs))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Returns a linear layer whose weights and biases start at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Actor(nn.Module):
    """The actor μ(s), which maps a state to domain weights.

    The network's K outputs are squashed to ±`logit_bound` (if there is a bound), mean-centred and added to log(prior).
    They start at zero, so the policy starts as exactly the prior. A share f of the prior is mixed in, so that every
    domain is drawn: w = (1 - f) softmax(logits) + f prior. For a uniform prior this is the floor ε = f/K.
    """

    prior_K: Tensor

    def __init__(self, state_size: int, prior_K: Tensor, settings: AgentSettings) -> None:
        super().__init__()
        num_domains = len(prior_K)
        self.network = mlp(state_size, num_domains, settings.hidden, settings.layers)
        self.logit_bound = settings.logit_bound
        self.floor_share = settings.floor_share
        self.register_buffer("prior_K", prior_K.float())

    def offsets(self, states_NF: Tensor) -> Tensor:
        """Returns the mean-centred logit offsets from log(prior). [N, K]"""
        raw_NK = self.network(states_NF)
        if self.logit_bound is not None:
            raw_NK = self.logit_bound * torch.tanh(raw_NK / self.logit_bound)
        return raw_NK - raw_NK.mean(dim=-1, keepdim=True)

    def weights(self, offsets_NK: Tensor) -> Tensor:
        """Returns the weights on the simplex for these logit offsets. [N, K]"""
        probabilities_NK = torch.softmax(self.prior_K.log() + offsets_NK, dim=-1)
        return (1 - self.floor_share) * probabilities_NK + self.floor_share * self.prior_K

    def forward(self, states_NF: Tensor) -> Tensor:
        return self.weights(self.offsets(states_NF))


class Critic(nn.Module):
    """The critic Q(s, a) ∈ R^K, which gives one value per domain; the policy's value is Σ α_i Q_i.

    With `quadratic_action`, a linear map of (a, a²) is added to the network's output. How the value depends on the
    action can then be learned from a few hundred transitions, while the network still learns from the state.
    The values of all domains start at zero, so that the actor is not driven at first by differences between them that
    come from initialisation only.
    """

    prior_K: Tensor

    def __init__(self, state_size: int, prior_K: Tensor, settings: AgentSettings) -> None:
        super().__init__()
        num_domains = len(prior_K)
        self.network = mlp(state_size + num_domains, num_domains, settings.hidden, settings.layers)
        self.quadratic = zero_linear(2 * num_domains, num_domains) if settings.quadratic_action else None
        self.register_buffer("prior_K", prior_K.float())

    def forward(self, states_NF: Tensor, weights_NK: Tensor) -> Tensor:
        # Weights are of the order 1/K. Centred and scaled they are of the order 1, as the states are.
        action_NK = (weights_NK - self.prior_K) * self.prior_K.shape[0]
        values_NK = self.network(torch.cat([states_NF, action_NK], dim=-1))
        if self.quadratic is not None:
            values_NK = values_NK + self.quadratic(torch.cat([action_NK, action_NK.square()], dim=-1))
        return values_NK
