"""The actor-critic agent of AC-ODM: DDPG (1509.02971) with TD3's additions (1802.09477) as switches.

It knows states, actions on the simplex and per-domain rewards, nothing of language models.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acodm_cli.mixing.acodm.networks import Actor, Critic
from acodm_cli.mixing.acodm.settings import AgentSettings
from acodm_cli.mixing.acodm.state import RunningNormalizer

TRAJECTORY_LENGTH = 4096


@dataclass(frozen=True)
class Transitions:
    """states_NS, actions_NK (the executed weights), rewards_NK, next_states_NS. Never terminal: the end of a run
    is the end of the budget, not of the environment."""

    states_NS: Tensor
    actions_NK: Tensor
    rewards_NK: Tensor
    next_states_NS: Tensor


class ReplayBuffer:
    """Ring buffer of the last `capacity` transitions. States are kept raw and normalised when sampled."""

    def __init__(self, capacity: int, state_size: int, num_domains: int) -> None:
        widths = (state_size, num_domains, num_domains, state_size)
        self.columns = [torch.zeros(capacity, width, dtype=torch.float64) for width in widths]
        self.capacity = capacity
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, *transition: Tensor) -> None:
        for column, value in zip(self.columns, transition, strict=True):
            column[self.added % self.capacity] = value
        self.added += 1

    def sample(self, count: int, generator: torch.Generator) -> Transitions:
        rows = torch.randint(len(self), (count,), generator=generator)
        states, actions, rewards, next_states = (column[rows] for column in self.columns)
        return Transitions(states, actions.float(), rewards.float(), next_states)

    def state_dict(self) -> dict[str, Any]:
        return {"added": self.added, "columns": [column[: len(self)].clone() for column in self.columns]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.added = state["added"]
        for column, saved in zip(self.columns, state["columns"], strict=True):
            column[: len(self)] = saved


def critic_target(rewards_NK: Tensor, gamma: float, next_weights_NK: Tensor, target_values: list[Tensor]) -> Tensor:
    """y = r + γ Q̄(s', μ̄(s')). With twin critics, the one that values the next action less. [N, K]"""
    values = torch.stack([(next_weights_NK * value_NK).sum(dim=-1) for value_NK in target_values])
    least = values.argmin(dim=0)
    next_values_NK = torch.stack(target_values)[least, torch.arange(len(rewards_NK))]
    return rewards_NK + gamma * next_values_NK


def actor_objective(weights_NK: Tensor, values_NK: Tensor) -> Tensor:
    """Mean over states of Σ_i α_i Q_i(s, α), to be maximised.

    It is the linear surrogate J(α) = Σ α_i W_i of the interaction energy, over the horizon of the critic. The
    unweighted mean of Q would carry no signal: rewards are z-scores over domains, and their mean is constant.
    """
    return (weights_NK * values_NK).sum(dim=-1).mean()


def divergence_from_prior(weights_NK: Tensor, prior_K: Tensor) -> Tensor:
    """Mean over states of KL(α ‖ prior), in nats."""
    return (weights_NK * (weights_NK / prior_K).log()).sum(dim=-1).mean()


class Trajectory:
    """States and the logit offsets that were executed in them, of the whole run, thinned to at most `capacity` of them: when it
    is full every other one goes, and from then on half as many come."""

    def __init__(self, capacity: int, state_size: int, num_domains: int) -> None:
        assert capacity % 2 == 0
        self.states_NS = torch.zeros(capacity, state_size, dtype=torch.float64)
        self.offsets_NK = torch.zeros(capacity, num_domains)
        self.count, self.stride, self.seen = 0, 1, 0

    def add(self, state_S: Tensor, offsets_K: Tensor) -> None:
        if self.count == len(self.states_NS):
            self.count //= 2
            self.stride *= 2
            for column in (self.states_NS, self.offsets_NK):
                column[: self.count] = column[::2].clone()
        if self.seen % self.stride == 0:
            self.states_NS[self.count], self.offsets_NK[self.count] = state_S, offsets_K
            self.count += 1
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        rows = {"states": self.states_NS[: self.count].clone(), "offsets": self.offsets_NK[: self.count].clone()}
        return rows | {"count": self.count, "stride": self.stride, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.stride, self.seen = state["count"], state["stride"], state["seen"]
        self.states_NS[: self.count], self.offsets_NK[: self.count] = state["states"], state["offsets"]


def soft_update(targets: list[Tensor], sources: list[Tensor], tau: float) -> None:
    """θ̄ ← (1-τ) θ̄ + τ θ."""
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, tau)


class Exploration:
    """Gaussian noise with correlation between consecutive steps, of unit variance and mean zero over domains:
    what is common to all logits does nothing under softmax."""

    def __init__(self, num_domains: int, correlation: float) -> None:
        self.correlation = correlation
        self.value_K = torch.zeros(num_domains)
        self.started = False

    def __call__(self, generator: torch.Generator) -> Tensor:
        fresh_K = torch.randn(len(self.value_K), generator=generator)
        fresh_K = fresh_K - fresh_K.mean()
        if self.started:
            rho = self.correlation
            self.value_K = rho * self.value_K + (1 - rho**2) ** 0.5 * fresh_K
        else:
            self.value_K, self.started = fresh_K, True
        return self.value_K


class Agent:
    """Networks, their targets and optimisers, the replay buffer and the exploration.

    Everything lives on the CPU: the networks are small, and the weights they give are needed on the host.
    """

    def __init__(self, state_size: int, prior_K: Tensor, settings: AgentSettings, seed: int) -> None:
        self.settings = settings
        self.prior_K = prior_K
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Actor(state_size, prior_K, settings)
            critics = [Critic(state_size, prior_K, settings) for _ in range(1 + settings.twin_critics)]
        self.critics = nn.ModuleList(critics)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=settings.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=settings.critic_lr, fused=True)
        # Listed once: walking the modules takes as long as the arithmetic of networks this small.
        self.parameters: dict[str, list[Tensor]] = {
            name: list(getattr(self, name).parameters())
            for name in ("actor", "critics", "target_actor", "target_critics")
        }
        self.normalizer = RunningNormalizer(state_size)
        self.replay = ReplayBuffer(settings.replay_capacity, state_size, len(prior_K))
        self.exploration = Exploration(len(prior_K), settings.noise_correlation)
        self.trajectory = Trajectory(TRAJECTORY_LENGTH, state_size, len(prior_K))
        self.offsets_K = torch.zeros(len(prior_K))
        self.ascended_K = torch.zeros(len(prior_K))
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0

    # Acting

    @torch.no_grad()
    def act(
        self, state_S: Tensor, follow: Literal["prior", "actor"], noise: float, initial_K: Tensor | None = None
    ) -> Tensor:
        """Executed weights, with noise. [K]

        By gradient: around the prior, or the smoothed action of the actor. By mirror ascent: the logit offsets that were
        ascended, from those of an initial policy if there is one (initial_K).
        """
        settings = self.settings
        if settings.actor_update == "mirror":
            self.offsets_K = self.ascended_K if initial_K is None else self._bounded(initial_K + self.ascended_K)
            self.trajectory.add(state_S, self.offsets_K)
        elif follow == "actor":
            offsets_K = self.actor.offsets(self.normalizer(state_S))
            keep = settings.smoothing
            self.offsets_K = keep * self.offsets_K + (1 - keep) * offsets_K
        noise_K = noise * self.exploration(self.generator)
        if settings.noise_space == "logit":
            return self.actor.weights(self.offsets_K + noise_K)
        weights_K = self.actor.weights(self.offsets_K) + noise_K
        floor_K = settings.floor_share * self.actor.prior_K
        above_K = (weights_K - floor_K).clamp(min=0)
        return floor_K + (1 - settings.floor_share) * above_K / above_K.sum()

    # Learning

    @torch.no_grad()
    def ascend(self, action_K: Tensor, reward_K: Tensor, next_state_S: Tensor) -> None:
        """One step of mirror ascent on Σ α_i y_i - λ KL(α ‖ initial policy), on the transition that was just seen.

        The natural gradient on the simplex, in logits u: u_i ← u_i + η (A_i - λ u_i) with A_i = (1-γ) (y_i - Σ_j α_j y_j)
        and y = r + γ Q̄(s', μ̄(s')). DDPG differentiates the critic; of a few hundred noisy transitions its values can be
        learned, its slopes cannot. So the values are used: the critic's say what is lasting of a noisy reward. With γ = 0
        it is the exponentiated gradient of DoGE (2310.15393), anchored. As y is held fixed, what is sought with rewards W_i / α_i
        is where they are equal (α ∝ W, but for the anchor), not the largest Σ α_i W_i / α_i, which is the same for all α.
        """
        s = self.settings
        after_1S = self.normalizer(next_state_S)[None]
        next_weights_1K = self.target_actor(after_1S)
        values = [critic(after_1S, next_weights_1K) for critic in self.target_critics]
        y_K = critic_target(reward_K.float()[None], s.gamma, next_weights_1K, values)[0]
        advantage_K = (1 - s.gamma) * (y_K - (action_K.float() * y_K).sum())
        ascended_K = self.ascended_K + s.step_size * (advantage_K - s.anchor * self.ascended_K)
        self.ascended_K = self._bounded(ascended_K - ascended_K.mean())

    def _bounded(self, offsets_K: Tensor) -> Tensor:
        bound = self.settings.logit_bound
        return offsets_K if bound is None else offsets_K.clamp(-bound, bound)

    def distil(self, updates: int) -> None:
        """Fit the actor to all that was executed, so that it can be queried without any reward; by mirror ascent alone."""
        if self.settings.actor_update == "mirror":
            for _ in range(updates):
                self._fit_actor()

    def update(self, train_actor: bool = True) -> tuple[float, float | None]:
        """One update of the critics and, every `actor_delay` calls, of the actor; then of the targets.

        train_actor: False while only the critics learn. Returns the critic's loss and the actor's objective
        before the update (None if the actor had no turn).
        """
        batch = self.replay.sample(self.settings.batch_size, self.generator)
        states_NS = self.normalizer(batch.states_NS)
        critic_loss = self._update_critics(batch, states_NS)
        self.updates += 1
        objective = None
        if self.settings.actor_update == "mirror":
            self._fit_actor()
            with torch.no_grad():
                objective = float(actor_objective(batch.actions_NK, self.critics[0](states_NS, batch.actions_NK)))
        elif train_actor and self.updates % self.settings.actor_delay == 0:
            objective = self._update_actor(states_NS)
        for name in ("actor", "critics"):
            soft_update(self.parameters[f"target_{name}"], self.parameters[name], self.settings.tau)
        return critic_loss, objective

    def _update_critics(self, batch: Transitions, states_NS: Tensor) -> float:
        settings = self.settings
        next_states_NS = self.normalizer(batch.next_states_NS)
        with torch.no_grad():
            offsets_NK = self.target_actor.offsets(next_states_NS)
            if settings.target_noise:
                noise_NK = torch.randn(offsets_NK.shape, generator=self.generator) * settings.target_noise
                offsets_NK = offsets_NK + noise_NK.clamp(-2 * settings.target_noise, 2 * settings.target_noise)
            next_weights_NK = self.target_actor.weights(offsets_NK)
            target_values = [critic(next_states_NS, next_weights_NK) for critic in self.target_critics]
            y_NK = critic_target(batch.rewards_NK, settings.gamma, next_weights_NK, target_values)
        error = F.smooth_l1_loss if settings.huber else F.mse_loss
        losses = [error(critic(states_NS, batch.actions_NK), y_NK) for critic in self.critics]
        loss = torch.stack(losses).sum()
        self._step(self.critic_optimizer, self.parameters["critics"], loss)
        return float(loss.detach()) / len(self.critics)

    def _update_actor(self, states_NS: Tensor) -> float:
        weights_NK = self.actor(states_NS)
        objective = actor_objective(weights_NK, self.critics[0](states_NS, weights_NK))
        penalty = self.settings.anchor * divergence_from_prior(weights_NK, self.actor.prior_K)
        self._step(self.actor_optimizer, self.parameters["actor"], penalty - objective)
        return float(objective.detach())

    def _fit_actor(self) -> None:
        rows_N = torch.randint(self.trajectory.count, (self.settings.batch_size,), generator=self.generator)
        states_NS = self.normalizer(self.trajectory.states_NS[rows_N])
        # The state begins with the counts of the last batch, from which an actor would read its own last action and repeat it.
        counts, shuffled_N = len(self.prior_K), torch.randperm(len(rows_N), generator=self.generator)
        states_NS[:, :counts] = states_NS[shuffled_N, :counts]
        loss = F.mse_loss(self.actor.offsets(states_NS), self.trajectory.offsets_NK[rows_N])
        self._step(self.actor_optimizer, self.parameters["actor"], loss)

    def _step(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor], loss: Tensor) -> None:
        # Gradients of these parameters only: the actor's loss also flows through the critic, which must not keep it.
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    # State

    _MODULES = ("actor", "critics", "target_actor", "target_critics", "actor_optimizer", "critic_optimizer")

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in self._MODULES}
        return state | {
            "normalizer": self.normalizer.tensors(),
            "replay": self.replay.state_dict(),
            "noise": self.exploration.value_K,
            "noise_started": self.exploration.started,
            "trajectory": self.trajectory.state_dict(),
            "offsets": self.offsets_K,
            "ascended": self.ascended_K,
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._MODULES:
            getattr(self, name).load_state_dict(state[name])
        self.normalizer.load(state["normalizer"])
        self.replay.load_state_dict(state["replay"])
        self.exploration.value_K = state["noise"]
        self.exploration.started = state["noise_started"]
        self.trajectory.load_state_dict(state["trajectory"])
        self.offsets_K = state["offsets"]
        self.ascended_K = state["ascended"]
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]
