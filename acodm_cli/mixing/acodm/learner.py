"""The AC-ODM learner: a mixer that trains the agent while the model trains (arXiv 2505.23878, algorithm 1)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from acodm_cli.alignment.gram import gradient_alignment
from acodm_cli.mixing.acodm.agent import Agent
from acodm_cli.mixing.acodm.policy import FrozenPolicy, dump_policy
from acodm_cli.mixing.acodm.reward import AlignmentReward, standardise
from acodm_cli.mixing.acodm.settings import AgentSettings
from acodm_cli.mixing.acodm.state import encode_state, state_size
from acodm_cli.mixing.mixer import Array, Feedback, Observation, Report

# Fewer transitions than this say nothing; the critics start to learn at it.
LEAST_TRANSITIONS = 8


class AcOdmLearner:
    """Acts, is rewarded by gradient alignment, and learns, one transition and a few updates per step.

    In the warm-up it explores around the prior (or, if it continues a transferred policy, around that policy) and
    only the critics learn; then the actor decides.
    """

    name = "ac-odm"
    needs_gram = True

    def __init__(self, prior_K: Array, settings: AgentSettings, seed: int, initial: FrozenPolicy | None = None) -> None:
        self.agent_settings = settings
        self.depths = settings.relative_depths()
        size = state_size(len(prior_K), settings.depths)
        self.agent = Agent(size, torch.from_numpy(prior_K).float(), settings, seed)
        self.reward = AlignmentReward(len(prior_K), settings.ema)
        self.continues_policy = initial is not None
        if initial is not None:
            self.agent.actor.load_state_dict(initial.actor.state_dict())
            self.agent.target_actor.load_state_dict(initial.actor.state_dict())
            self.agent.normalizer.load(initial.normalizer.tensors())

    def _in_warmup(self, observation: Observation) -> bool:
        return observation.step < self.agent_settings.warmup_steps(observation.total_steps)

    def weights(self, observation: Observation) -> Array:
        state_S = torch.from_numpy(encode_state(observation))
        if observation.step == 0:
            self.agent.normalizer.update(state_S.numpy())
        exploring = self._in_warmup(observation)
        follow: Literal["prior", "actor"] = "prior" if exploring and not self.continues_policy else "actor"
        noise = self.agent_settings.warmup_noise if exploring else self.agent_settings.noise
        return self.agent.act(state_S, follow, noise).numpy().astype(np.float64)

    def observe(self, feedback: Feedback) -> Report:
        assert feedback.gram_KK is not None
        alignment_K = gradient_alignment(feedback.gram_KK)
        reward_K = self.reward.update(alignment_K, feedback.weights_K, feedback.samples_K > 0)
        state_S = encode_state(feedback.observation)
        next_state_S = encode_state(feedback.next_observation)
        self.agent.normalizer.update(next_state_S)
        self.agent.replay.add(
            torch.from_numpy(state_S),
            torch.from_numpy(feedback.weights_K),
            torch.from_numpy(standardise(reward_K, self.reward.seen_K)),
            torch.from_numpy(next_state_S),
        )
        warming_up = self._in_warmup(feedback.observation)
        critic_loss: float | None = None
        objective: float | None = None
        if len(self.agent.replay) >= LEAST_TRANSITIONS:
            for _ in range(self.agent_settings.updates_per_step):
                critic_loss, latest = self.agent.update(train_actor=not warming_up)
                objective = objective if latest is None else latest
        return Report(
            reward_K=np.where(self.reward.seen_K, reward_K, np.nan),
            critic_loss=critic_loss,
            actor_objective=objective,
            phase="warm-up" if warming_up else "learning",
        )

    def policy_bytes(self, domains: list[str]) -> bytes:
        return dump_policy(self.agent, domains)

    def settings(self) -> dict[str, Any]:
        return self.agent_settings.to_json()

    def state_dict(self) -> dict[str, Any]:
        return {
            "agent": self.agent.state_dict(),
            "reward": torch.from_numpy(self.reward.value_K),
            "seen": torch.from_numpy(self.reward.seen_K),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.reward.value_K = state["reward"].numpy()
        self.reward.seen_K = state["seen"].numpy()
