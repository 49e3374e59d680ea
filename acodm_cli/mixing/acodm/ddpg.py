"""DDPG (1509.02971): the actor climbs the gradient of the critic's values in the action, as in the publication."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from acodm_cli.mixing.acodm.agent import Agent, actor_objective
from acodm_cli.mixing.acodm.buffers import Transitions


def divergence_from_prior(weights_NK: Tensor, prior_K: Tensor) -> Tensor:
    """Returns the mean over states of KL(α ‖ prior), in nats, a scalar."""
    return (weights_NK * (weights_NK / prior_K).log()).sum(dim=-1).mean()


class DdpgAgent(Agent):
    """Acts around the prior in the warm-up. After that it executes the actor's action, smoothed over steps."""

    def choose_offsets(self, state_F: Tensor, follow: Literal["prior", "actor"], initial_K: Tensor | None) -> Tensor:
        if follow == "prior":
            return self.offsets_K
        keep = self.settings.smoothing
        return keep * self.offsets_K + (1 - keep) * self.actor.offsets(self.normalizer(state_F))

    def update_actor(self, batch: Transitions, states_NF: Tensor, train_actor: bool) -> float | None:
        """Climbs the gradient of `actor_objective` less the anchor, once in every `actor_delay` calls."""
        if not train_actor or self.updates % self.settings.actor_delay:
            return None
        weights_NK = self.actor(states_NF)
        objective = actor_objective(weights_NK, self.critics[0](states_NF, weights_NK))
        penalty = self.settings.anchor * divergence_from_prior(weights_NK, self.actor.prior_K)
        self.step(self.actor_optimizer, self.parameters["actor"], penalty - objective)
        return float(objective.detach())
