"""Mirror ascent: the executed logits ascend by the lasting part of a noisy reward, and the actor is fitted to them.

The critic says what is lasting. DDPG differentiates the critic, but from a few hundred noisy transitions only its
values can be learned, not its slopes. So the values are used here.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from acodm_cli.mixing.acodm.agent import Agent, actor_objective
from acodm_cli.mixing.acodm.buffers import Trajectory, Transitions
from acodm_cli.mixing.acodm.settings import AgentSettings
from acodm_cli.mixing.acodm.state import forget_last_action

TRAJECTORY_LENGTH = 4096
# At the end the actor is fitted in at most so many updates per state that it saw.
DISTIL_PER_STATE = 10


class MirrorAgent(Agent):
    """Executes the logit offsets to which it has ascended, on top of those of a transferred policy if there is one.

    ascended_K: the offsets to which it has ascended. trajectory: the states with the offsets that were executed in
    them, to which the actor is fitted. kept_K: the offsets at which the best episode ended. step_share: the share of the step size
    that is left.
    """

    def __init__(self, state_size: int, prior_K: Tensor, settings: AgentSettings, seed: int) -> None:
        super().__init__(state_size, prior_K, settings, seed)
        self.ascended_K = torch.zeros(len(prior_K))
        self.kept_K = self.ascended_K
        self.step_share = 1.0
        self._begin_trajectory()

    def choose_offsets(self, state_F: Tensor, follow: Literal["prior", "actor"], initial_K: Tensor | None) -> Tensor:
        offsets_K = self._bounded(self.ascended_K)
        if initial_K is not None:
            bound = self.settings.logit_bound or torch.inf
            offsets_K = (initial_K + offsets_K).clamp(-bound, bound)
        self.trajectory.add(state_F, offsets_K)
        return offsets_K

    @torch.no_grad()
    def ascend(self, action_K: Tensor, reward_K: Tensor, next_state_F: Tensor) -> None:
        """Takes one step of mirror ascent on Σ α_i y_i - λ KL(α ‖ initial policy), from the last transition.

        The step is the natural gradient on the simplex, in logits u: u_i ← u_i + η (A_i - λ u_i), where
        A_i = (1-γ) (y_i - Σ_j α_j y_j) and y = r + γ Q̄(s', μ̄(s')). With γ = 0 it is the exponentiated gradient of
        DoGE (2310.15393), with an anchor; what is executed is u squashed to the bound. As y is held fixed, rewards W_i / α_i lead to where they are all equal
        (α ∝ W, but for the anchor), and not to the largest Σ α_i W_i / α_i, which is the same for all α.
        """
        s = self.settings
        after_1F = self.normalizer(next_state_F)[None]
        y_K = self.targets(reward_K.float()[None], after_1F, self.target_actor(after_1F))[0]
        advantage_K = (1 - s.gamma) * (y_K - (action_K.float() * y_K).sum())
        ascended_K = self.ascended_K + self.step_share * s.step_size * (advantage_K - s.anchor * self.ascended_K)
        self.ascended_K = ascended_K - ascended_K.mean()

    def _bounded(self, offsets_K: Tensor) -> Tensor:
        """Returns offsets squashed to the bound, as the actor's are: the order of domains stays, also near the bound. [K]"""
        if self.settings.logit_bound is None:
            return offsets_K
        squashed_K = self.settings.logit_bound * torch.tanh(offsets_K / self.settings.logit_bound)
        return squashed_K - squashed_K.mean()

    def end_episode(self, improved: bool) -> None:
        """Goes on from where the episode ended; if it was not the best so far, from where the best one ended, with half the steps."""
        if improved:
            self.kept_K = self.ascended_K
        else:
            self.ascended_K = self.kept_K
            self.step_share /= 2
        self._begin_trajectory()

    def _begin_trajectory(self) -> None:
        self.trajectory = Trajectory(TRAJECTORY_LENGTH, len(self.normalizer.mean_F), len(self.prior_K))

    def distil(self, updates: int) -> None:
        for _ in range(min(updates, DISTIL_PER_STATE * self.trajectory.count)):
            self._fit_actor()

    def update_actor(self, batch: Transitions, states_NF: Tensor, train_actor: bool) -> float | None:
        """Moves the actor toward what was executed. Returns the objective of the executed actions."""
        self._fit_actor()
        with torch.no_grad():
            return float(actor_objective(batch.actions_NK, self.critics[0](states_NF, batch.actions_NK)))

    def _fit_actor(self) -> None:
        rows_N = torch.randint(self.trajectory.count, (self.settings.batch_size,), generator=self.generator)
        states_NF = self.normalizer(self.trajectory.states_NF[rows_N])
        states_NF = forget_last_action(states_NF, len(self.prior_K), self.generator)
        loss = functional.mse_loss(self.actor.offsets(states_NF), self.trajectory.offsets_NK[rows_N])
        self.step(self.actor_optimizer, self.parameters["actor"], loss)

    def state_dict(self) -> dict[str, Any]:
        offsets = {"ascended": self.ascended_K, "kept": self.kept_K, "step_share": self.step_share}
        return super().state_dict() | {"trajectory": self.trajectory.state_dict(), **offsets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.trajectory.load_state_dict(state["trajectory"])
        self.ascended_K, self.kept_K, self.step_share = state["ascended"], state["kept"], state["step_share"]
