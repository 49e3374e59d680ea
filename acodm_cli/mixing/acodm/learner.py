"""The AC-ODM learner: a mixer that trains the agent while the model trains (arXiv 2505.23878, algorithm 1)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from acodm_cli.mixing.acodm.agent import Agent
from acodm_cli.mixing.acodm.policy import FrozenPolicy, dump_policy
from acodm_cli.mixing.acodm.reward import AlignmentReward, domain_costs, relative, standardise
from acodm_cli.mixing.acodm.settings import AgentSettings
from acodm_cli.mixing.acodm.state import encode_state, state_size
from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report

# Fewer transitions than this say nothing; the critics start to learn at it.
LEAST_TRANSITIONS = 8
# Of the actor, when it is frozen; they take about a second.
DISTIL_UPDATES = 1000


class AcOdmLearner(Mixer):
    """Acts, is rewarded by gradient alignment, and learns, one transition and a few updates per step.

    In the warm-up it explores around the prior (or, if it continues a transferred policy, around that policy) and
    only the critics learn; then the agent decides.
    """

    name = "ac-odm"
    needs_gram = True

    def __init__(self, prior_K: Array, settings: AgentSettings, seed: int, initial: FrozenPolicy | None = None) -> None:
        self.agent_settings = settings
        self.depths = settings.relative_depths()
        self.exploring = True
        self.latest_losses: tuple[float | None, float | None] = (None, None)
        size = state_size(len(prior_K), settings.depths)
        self.agent = Agent(size, torch.from_numpy(prior_K).float(), settings, seed)
        self.reward = AlignmentReward(len(prior_K), settings.ema)
        self.losses = MovingAverage((len(prior_K),), settings.ema)
        self.least_weights_K = max(settings.floor_share, 0.01) * prior_K
        self.initial = initial
        if initial is not None:
            self.agent.actor.load_state_dict(initial.actor.state_dict())
            self.agent.target_actor.load_state_dict(initial.actor.state_dict())
            self.agent.normalizer.load(initial.normalizer.tensors())

    def weights(self, observation: Observation) -> Array:
        state_S = torch.from_numpy(encode_state(observation))
        if observation.step == 0:
            self.agent.normalizer.update(state_S.numpy())
        self.exploring = observation.step < self.agent_settings.warmup_steps(observation.total_steps)
        follow: Literal["prior", "actor"] = "prior" if self.exploring and self.initial is None else "actor"
        noise = self.agent_settings.warmup_noise if self.exploring else self.agent_settings.noise
        initial_K = None if self.initial is None else self.initial.act(state_S)
        return self.agent.act(state_S, follow, noise, initial_K).numpy().astype(np.float64)

    def learn(self) -> None:
        critic_loss: float | None = None
        objective: float | None = None
        if len(self.agent.replay) >= LEAST_TRANSITIONS:
            for _ in range(self.agent_settings.updates_per_step):
                critic_loss, latest = self.agent.update(train_actor=not self.exploring)
                objective = objective if latest is None else latest
        self.latest_losses = (critic_loss, objective)

    def observe(self, feedback: Feedback) -> Report:
        settings = self.agent_settings
        reward_K = self._reward(feedback)
        seen_K = self.reward.seen_K
        scaled_K = (standardise if settings.scale == "z-score" else relative)(reward_K, seen_K)
        state_S, next_state_S = encode_state(feedback.observation), encode_state(feedback.next_observation)
        self.agent.normalizer.update(next_state_S)
        transition = [torch.from_numpy(part) for part in (state_S, feedback.weights_K, scaled_K, next_state_S)]
        self.agent.replay.add(*transition)
        if settings.actor_update == "mirror" and not self.exploring:
            self.agent.ascend(*transition[1:])
        return Report(
            reward_K=np.where(seen_K, reward_K, np.nan),
            critic_loss=self.latest_losses[0],
            actor_objective=self.latest_losses[1],
            phase="warm-up" if self.exploring else "learning",
        )

    def _reward(self, feedback: Feedback) -> Array:
        """r̂ of the objective's first-order decrease. [K]"""
        assert feedback.gram_KK is not None
        settings = self.agent_settings
        present_K = feedback.samples_K > 0
        losses_K = feedback.next_observation.losses_K
        self.losses.update(np.where(present_K, losses_K, np.nan))
        costs_K = domain_costs(np.where(self.losses.seen, self.losses.value, losses_K), settings.objective)
        weights_K = np.ones_like(feedback.weights_K)
        if settings.importance:
            # A domain that --max-epochs has closed is still drawn for what it is owed; its reward must not be divided by nothing.
            weights_K = np.maximum(feedback.weights_K, self.least_weights_K)
        self_K = costs_K * feedback.self_K if settings.self_term and feedback.self_K is not None else None
        return self.reward.update(feedback.gram_KK * costs_K, weights_K, present_K, self_K)

    def policy_bytes(self, domains: list[str]) -> bytes:
        self.agent.distil(DISTIL_UPDATES)
        return dump_policy(self.agent, domains)

    def settings(self) -> dict[str, Any]:
        return self.agent_settings.to_json()

    def state_dict(self) -> dict[str, Any]:
        return {
            "agent": self.agent.state_dict(),
            "reward": self.reward.state_dict(),
            "losses": self.losses.state_dict(),
            "initial": {} if self.initial is None else self.initial.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.reward.load_state_dict(state["reward"])
        self.losses.load_state_dict(state["losses"])
        if self.initial is not None:
            self.initial.load_state_dict(state["initial"])
