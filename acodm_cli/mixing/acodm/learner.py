"""The AC-ODM learner: a mixer that trains the agent while the model trains (arXiv 2505.23878, algorithm 1)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from acodm_cli.mixing.acodm.agents import make_agent
from acodm_cli.mixing.acodm.balance import Balance
from acodm_cli.mixing.acodm.fixed_step import FixedStep, GuidedReward
from acodm_cli.mixing.acodm.keeping import Keeping
from acodm_cli.mixing.acodm.policy import FrozenPolicy, dump_policy, load_policy
from acodm_cli.mixing.acodm.reward import AlignmentReward, domain_costs, relative, standardise
from acodm_cli.mixing.acodm.settings import AgentSettings, agent_settings, check_read
from acodm_cli.mixing.acodm.state import encode_state, relative_depths, state_size
from acodm_cli.mixing.average import MovingAverage
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, Task
from acodm_cli.mixing.objective import MEAN_OVER_DOMAINS, Objective
from acodm_cli.schedule.info import WARM_UP

# The critics start to learn when there are so many transitions; fewer say nothing.
LEAST_TRANSITIONS = 8
# The number of updates that fit the actor when its policy is stored. They take about a second.
DISTIL_UPDATES = 1000


class InitialPolicy(Protocol):
    """The policy that a learner departs from."""

    def offsets(self, observation: Observation) -> Tensor:
        """Returns its logit offsets from the log of the learner's prior. [K]"""

    def end_episode(self, cost: float, left: int) -> None:
        """As of `Mixer`, like the other two."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class AcOdmLearner(Mixer):
    """Acts, is rewarded for what domains gain for the objective, and learns, with one transition and a few updates per step.

    In the warm-up it explores around the prior (or around a transferred policy, if it continues one), and only the
    critics learn. After the warm-up the agent decides. Of several episodes only the first one has a warm-up: the agent goes
    on, while what is averaged over a model's life begins anew with the model.
    """

    name = "ac-odm"
    needs_gram = True
    guided = True
    keeps = True
    Settings = AgentSettings
    uses = ("prior", "agent", "objective_weights", "episodes")

    def __init__(
        self,
        prior_K: Array,
        settings: AgentSettings,
        seed: int,
        initial: InitialPolicy | None = None,
        objective: Objective = MEAN_OVER_DOMAINS,
    ) -> None:
        """initial: of a frozen policy, the actor learns on too; from any other, only its offsets are taken."""
        self.agent_settings = settings
        self.depths = relative_depths(settings.depths)
        self.exploring = True
        self.episode = 1
        self.least_cost = float("inf")
        self.latest: dict[str, float] = {}
        size = state_size(len(prior_K), settings.depths)
        ascending = replace(settings, step_size=settings.guided_step_size) if objective.targets else settings
        self.agent = make_agent(size, torch.from_numpy(prior_K).float(), ascending, seed)
        self.objective = objective
        self._begin_averages()
        self.least_weights_K = max(settings.floor_share, 0.01) * prior_K
        self.initial = initial
        if isinstance(initial, FrozenPolicy):
            self.agent.actor.load_state_dict(initial.actor.state_dict())
            self.agent.target_actor.load_state_dict(initial.actor.state_dict())
            self.agent.normalizer.load(initial.normalizer.tensors())

    def _begin_averages(self) -> None:
        num_domains, settings = len(self.agent.prior_K), self.agent_settings
        self.reward: AlignmentReward | FixedStep = AlignmentReward(num_domains, settings.ema)
        if settings.reward == "fixed-step":
            self.reward = FixedStep(num_domains, settings.ema, settings.crowding)
        self.losses = MovingAverage((num_domains,), settings.ema)
        if targets := len(self.objective.targets):
            parts = targets + len(self.objective.kept)
            self.balance = Balance(self.objective)
            self.guided_reward = GuidedReward(
                num_domains, parts, settings.guide_ema, settings.ema, settings.guided_crowding
            )
            self.guide_losses = MovingAverage((targets,), settings.guide_ema)
            self.keeping = Keeping(len(self.objective.kept), self.objective.budget, self.objective.learned)

    @classmethod
    def default_settings(cls, preset: str) -> AgentSettings:
        return agent_settings(preset)

    @classmethod
    def make(cls, task: Task) -> Mixer:
        """Returns a learner that starts from the prior or, if the task's schedule holds a policy, from that policy."""
        settings = agent_settings(task.preset, task.options)
        check_read(task.options or {}, settings, bool(task.objective.targets))
        if task.schedule is None or task.schedule.policy is None:
            return cls(task.prior_K, settings, task.seed, objective=task.objective)
        initial = load_policy(task.schedule.policy, task.schedule.domains, settings)
        return cls(initial.actor.prior_K.double().numpy(), initial.agent_settings, task.seed, initial, task.objective)

    def weights(self, observation: Observation) -> Array:
        state_F = encode_state(observation)
        if observation.step == 0:
            self.agent.normalizer.update(state_F)
        warmup_steps = self.agent_settings.warmup_steps(observation.total_steps)
        self.exploring = self.episode == 1 and observation.step < warmup_steps
        follow: Literal["prior", "actor"] = "prior" if self.exploring and self.initial is None else "actor"
        noise = self.agent_settings.warmup_noise if self.exploring else self.agent_settings.noise
        initial_K = None if self.initial is None else self.initial.offsets(observation)
        return self.agent.act(state_F, follow, noise, initial_K).numpy().astype(np.float64)

    def learn(self) -> None:
        self.latest = {}
        if len(self.agent.replay) < LEAST_TRANSITIONS:
            return
        for _ in range(self.agent_settings.updates_per_step):
            critic_loss, objective = self.agent.update(train_actor=not self.exploring)
            self.latest["critic_loss"] = critic_loss
            if objective is not None:
                self.latest["actor_objective"] = objective

    def observe(self, feedback: Feedback) -> Report:
        settings = self.agent_settings
        size: float | None
        if self.objective.targets:
            reward_K, size, seen_K = *self._guided_reward(feedback), self.guided_reward.seen_K
        else:
            reward_K, size, seen_K = *self._reward(feedback), self.reward.seen_K
        if size is None:
            scaled_K = (standardise if settings.scale == "z-score" else relative)(reward_K, seen_K)
        else:
            scaled_K = (reward_K / size).clip(-3, 3) if size else np.zeros_like(reward_K)
        state_F, next_state_F = encode_state(feedback.observation), encode_state(feedback.next_observation)
        action_K, scaled_reward_K = torch.from_numpy(feedback.weights_K), torch.from_numpy(scaled_K)
        self.agent.normalizer.update(next_state_F)
        self.agent.replay.add(state_F, action_K, scaled_reward_K, next_state_F)
        if not self.exploring:
            self.agent.ascend(action_K, scaled_reward_K, next_state_F)
        return Report(
            reward_K=np.where(seen_K, reward_K, np.nan),
            metrics=self.latest | self._of_targets(),
            phase=WARM_UP if self.exploring else "learning",
        )

    def _reward(self, feedback: Feedback) -> tuple[Array, float | None]:
        """Returns (r̂, what one more share of each domain does for the objective [K]; the mean size of gains, None if rewards are
        to be scaled by their own)."""
        assert feedback.gram_KK is not None
        settings = self.agent_settings
        present_K = feedback.samples_K > 0
        losses_K = feedback.next_observation.losses_K
        self.losses.update(np.where(present_K, losses_K, np.nan))
        costs_K = domain_costs(np.where(self.losses.seen, self.losses.value, losses_K), settings.objective)
        costs_K = costs_K * self.objective.shares(len(costs_K)) * len(costs_K)
        if isinstance(self.reward, FixedStep):
            assert feedback.self_K is not None
            self.reward.update(feedback.gram_KK, feedback.self_K, feedback.samples_K)
            gain_K = self.reward.pairs.value() @ costs_K
            return self.reward.reward(gain_K, feedback.weights_K, feedback.samples_K.sum())
        self_K = costs_K * feedback.self_K if settings.self_term and feedback.self_K is not None else None
        return self.reward.update(feedback.gram_KK * costs_K, self._divisors(feedback), present_K, self_K), None

    def _divisors(self, feedback: Feedback) -> Array:
        """Returns what rewards are divided by. [K]"""
        if not self.agent_settings.importance:
            return np.ones_like(feedback.weights_K)
        # A domain that --max-epochs has closed is still drawn for what it is owed, when its weight may be zero.
        return np.maximum(feedback.weights_K, self.least_weights_K)

    def _guided_reward(self, feedback: Feedback) -> tuple[Array, float]:
        """Returns (r̂, what one more share of each domain does for the targets and for what is kept [K]; the mean size of gains)."""
        assert feedback.gram_KK is not None
        assert feedback.self_K is not None
        self.guided_reward.update(feedback.gram_KK, feedback.self_K, feedback.guide_KJ, feedback.samples_K)
        if feedback.guide_KJ is not None:
            assert feedback.guide_losses_J is not None
            targets = len(self.objective.targets)
            self.guide_losses.update(feedback.guide_losses_J[:targets])
            self.balance.update(np.where(self.guide_losses.seen, self.guide_losses.value, np.nan))
            if self.objective.kept:
                assert feedback.guide_before_J is not None
                self.keeping.update(
                    feedback.guide_losses_J[targets:],
                    feedback.guide_before_J[targets:],
                    feedback.observation.learning_rate,
                    feedback.observation.progress,
                )
        costs_J = np.concatenate([self.balance.weights_J, self.keeping.prices_J])
        return self.guided_reward.value(costs_J, feedback.weights_K, feedback.samples_K.sum())

    def _of_targets(self) -> dict[str, float]:
        """Returns what to record of the targets: their weights, and the smoothed losses of their guide text; and of what is kept: the
        price, and the smoothed rise of the loss of its guide text, as a share."""
        if not self.objective.targets:
            return {}
        found = {}
        for index, name in enumerate(self.objective.targets):
            found[f"target.{name}.weight"] = float(self.balance.weights_J[index])
            found[f"target.{name}.guide_loss"] = float(self.guide_losses.value[index])
        for name, price, rise in zip(self.objective.kept, self.keeping.prices_J, self.keeping.rises.value, strict=True):
            found |= {f"keep.{name}.price": float(price), f"keep.{name}.rise": float(rise)}
        return found

    def cost(self, objective: Objective, losses_J: Array) -> float:
        """Returns what is rewarded, in nats: J, or the log of the mean perplexity."""
        if objective.targets or self.objective.targets or self.agent_settings.objective == "loss":
            return super().cost(objective, losses_J)
        shares_J = objective.shares(len(losses_J))
        counted_J = shares_J > 0
        return float(np.logaddexp.reduce(losses_J[counted_J] + np.log(shares_J[counted_J])))

    def end_episode(self, cost: float, left: int) -> None:
        self.episode += 1
        self._begin_averages()
        self.agent.end_episode(improved=cost < self.least_cost)
        self.least_cost = min(cost, self.least_cost)
        if self.initial is not None:
            self.initial.end_episode(cost, left)

    def policy_bytes(self, domains: list[str]) -> bytes:
        """Returns the actor, fitted to what was executed. The agent itself continues as it was."""
        before = copy.deepcopy(self.agent.state_dict())
        self.agent.distil(DISTIL_UPDATES)
        policy = dump_policy(self.agent, domains)
        self.agent.load_state_dict(before)
        return policy

    def settings(self) -> dict[str, Any]:
        return self.agent_settings.to_json()

    @property
    def _guide_parts(self) -> tuple[str, ...]:
        return ("balance", "guided_reward", "guide_losses", "keeping") if self.objective.targets else ()

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode": self.episode,
            "least_cost": self.least_cost,
            "agent": self.agent.state_dict(),
            "reward": self.reward.state_dict(),
            "losses": self.losses.state_dict(),
            **{name: getattr(self, name).state_dict() for name in self._guide_parts},
            "initial": {} if self.initial is None else self.initial.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode, self.least_cost = state["episode"], state["least_cost"]
        self.agent.load_state_dict(state["agent"])
        self.reward.load_state_dict(state["reward"])
        self.losses.load_state_dict(state["losses"])
        for name in self._guide_parts:
            getattr(self, name).load_state_dict(state[name])
        if self.initial is not None:
            self.initial.load_state_dict(state["initial"])
