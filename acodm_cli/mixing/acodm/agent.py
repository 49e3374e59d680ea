"""The actor-critic agent of AC-ODM: what its two kinds have in common.

    ddpg.py     the actor climbs the critic's gradient (DDPG, 1509.02971), as in the publication
    mirror.py   the executed logits ascend by the critic's values, and the actor is fitted to them (the default)

An agent knows states, actions on the simplex and per-domain rewards, but nothing about language models. The additions
of TD3 (1802.09477) are settings. Everything lives on the CPU, because the networks are small and the domain weights
that they give are needed on the host.

Shape letters: K domains, F features of a state, N transitions of an update.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from acodm_cli.mixing.acodm.buffers import Exploration, ReplayBuffer, Transitions
from acodm_cli.mixing.acodm.networks import Actor, Critic
from acodm_cli.mixing.acodm.settings import AgentSettings
from acodm_cli.mixing.acodm.state import RunningNormalizer


def critic_target(rewards_NK: Tensor, gamma: float, next_weights_NK: Tensor, target_values: list[Tensor]) -> Tensor:
    """Returns y = r + γ Q̄(s', μ̄(s')), with the Q̄ of the critic that values the next action least. [N, K]

    next_weights_NK: the next action μ̄(s'). target_values: what each target critic gives for it, each [N, K].
    """
    values = torch.stack([(next_weights_NK * value_NK).sum(dim=-1) for value_NK in target_values])
    least = values.argmin(dim=0)
    next_values_NK = torch.stack(target_values)[least, torch.arange(len(rewards_NK))]
    return rewards_NK + gamma * next_values_NK


def actor_objective(weights_NK: Tensor, values_NK: Tensor) -> Tensor:
    """Returns the mean over states of Σ_i α_i Q_i(s, α), a scalar to be maximised.

    It is the linear surrogate J(α) = Σ α_i W_i of the interaction energy, over the horizon of the critic. The
    unweighted mean of Q would carry no signal: where rewards are z-scores over domains, their mean is constant.
    """
    return (weights_NK * values_NK).sum(dim=-1).mean()


def soft_update(targets: list[Tensor], sources: list[Tensor], tau: float) -> None:
    """Moves each target toward its source, in place: θ̄ ← (1-τ) θ̄ + τ θ."""
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, tau)


class Agent(ABC):
    """Holds the networks, their targets and optimisers, the replay buffer and the exploration, and learns with them."""

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
        # They are listed once, because walking the modules takes as long as the arithmetic of networks this small.
        self.parameters: dict[str, list[Tensor]] = {
            name: list(getattr(self, name).parameters())
            for name in ("actor", "critics", "target_actor", "target_critics")
        }
        self.normalizer = RunningNormalizer(state_size)
        self.replay = ReplayBuffer(settings.replay_capacity, state_size, len(prior_K))
        self.exploration = Exploration(len(prior_K), settings.noise_correlation)
        self.offsets_K = torch.zeros(len(prior_K))
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0

    # Acting

    @abstractmethod
    def choose_offsets(self, state_F: Tensor, follow: Literal["prior", "actor"], initial_K: Tensor | None) -> Tensor:
        """Returns the logit offsets from log(prior) to execute in a state, without noise. [K]

        follow: which of the two to follow, if this kind of agent has the choice. initial_K: the offsets of a
        transferred policy, None if there is none.
        """

    @torch.no_grad()
    def act(
        self, state_F: Tensor, follow: Literal["prior", "actor"], noise: float, initial_K: Tensor | None = None
    ) -> Tensor:
        """Returns the weights to execute in a state, with noise. [K]

        noise: the standard deviation of the noise. follow, initial_K: as in `choose_offsets`.
        """
        settings = self.settings
        self.offsets_K = self.choose_offsets(state_F, follow, initial_K)
        noise_K = noise * self.exploration(self.generator)
        if settings.noise_space == "logit":
            return self.actor.weights(self.offsets_K + noise_K)
        weights_K = self.actor.weights(self.offsets_K) + noise_K
        floor_K = settings.floor_share * self.actor.prior_K
        above_K = (weights_K - floor_K).clamp(min=0)
        return floor_K + (1 - settings.floor_share) * above_K / above_K.sum()

    # Learning

    def ascend(self, action_K: Tensor, reward_K: Tensor, next_state_F: Tensor) -> None:  # noqa: B027 - see mirror.py
        """Improves from the transition that was just seen, if this kind of agent does so. Called after the warm-up."""

    def distil(self, updates: int) -> None:  # noqa: B027 - see mirror.py
        """Fits the actor to what was executed, with so many updates, so that it can be queried without any reward."""

    def end_episode(self, improved: bool) -> None:  # noqa: B027 - see mirror.py
        """Forgets what belongs to one episode only. improved: whether the episode was the best so far."""

    def update(self, train_actor: bool = True) -> tuple[float, float | None]:
        """Updates the critics once, then the actor if it is its turn, then the targets.

        train_actor: False while only the critics learn; an actor that is fitted to what was executed is fitted all the
        same. Returns the mean loss of the critics and the actor's objective,
        both before the update. The objective is None if the actor had no turn.
        """
        batch = self.replay.sample(self.settings.batch_size, self.generator)
        states_NF = self.normalizer(batch.states_NF)
        critic_loss = self._update_critics(batch, states_NF)
        self.updates += 1
        objective = self.update_actor(batch, states_NF, train_actor)
        for name in ("actor", "critics"):
            soft_update(self.parameters[f"target_{name}"], self.parameters[name], self.settings.tau)
        return critic_loss, objective

    @abstractmethod
    def update_actor(self, batch: Transitions, states_NF: Tensor, train_actor: bool) -> float | None:
        """Updates the actor if it is its turn. Returns its objective, None if it had no turn. states_NF: normalised."""

    def _update_critics(self, batch: Transitions, states_NF: Tensor) -> float:
        settings = self.settings
        next_states_NF = self.normalizer(batch.next_states_NF)
        with torch.no_grad():
            offsets_NK = self.target_actor.offsets(next_states_NF)
            if settings.target_noise:
                noise_NK = torch.randn(offsets_NK.shape, generator=self.generator) * settings.target_noise
                offsets_NK = offsets_NK + noise_NK.clamp(-2 * settings.target_noise, 2 * settings.target_noise)
            next_weights_NK = self.target_actor.weights(offsets_NK)
            y_NK = self.targets(batch.rewards_NK, next_states_NF, next_weights_NK)
        error = functional.smooth_l1_loss if settings.huber else functional.mse_loss
        losses = [error(critic(states_NF, batch.actions_NK), y_NK) for critic in self.critics]
        loss = torch.stack(losses).sum()
        self.step(self.critic_optimizer, self.parameters["critics"], loss)
        return float(loss.detach()) / len(self.critics)

    def targets(self, rewards_NK: Tensor, next_states_NF: Tensor, next_weights_NK: Tensor) -> Tensor:
        """Returns `critic_target` with the values of the target critics. next_states_NF: normalised. [N, K]"""
        values = [critic(next_states_NF, next_weights_NK) for critic in self.target_critics]
        return critic_target(rewards_NK, self.settings.gamma, next_weights_NK, values)

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor], loss: Tensor) -> None:
        """Takes one step of an optimiser, down the gradient of the loss with respect to these parameters."""
        # Only these parameters get a gradient: the actor's loss also flows through the critic, which must not keep any.
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    # State

    _PARTS = (
        "actor",
        "critics",
        "target_actor",
        "target_critics",
        "actor_optimizer",
        "critic_optimizer",
        "replay",
        "exploration",
    )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the agent's coming actions and updates depend on."""
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in self._PARTS}
        return state | {
            "normalizer": self.normalizer.tensors(),
            "offsets": self.offsets_K,
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.normalizer.load(state["normalizer"])
        self.offsets_K = state["offsets"]
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]
