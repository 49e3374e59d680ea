from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from acodm_cli.errors import UsageError
from acodm_cli.mixing.acodm.agent import Agent, actor_objective, critic_target
from acodm_cli.mixing.acodm.agents import make_agent
from acodm_cli.mixing.acodm.buffers import Trajectory
from acodm_cli.mixing.acodm.mirror import MirrorAgent
from acodm_cli.mixing.acodm.networks import Actor
from acodm_cli.mixing.acodm.settings import DEFAULT, PAPER, AgentSettings, agent_settings, check_read

STATE = 12
# The default's networks and critic, with DDPG's own update of the actor.
BY_GRADIENT = replace(
    DEFAULT, actor_update="gradient", actor_delay=1, anchor=0.0, logit_bound=1.0, warmup_noise=0.3, noise=0.2, tau=0.01
)


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def fill(agent: Agent, count: int, num_domains: int) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        state_F = torch.randn(STATE, generator=generator, dtype=torch.float64)
        agent.normalizer.update(state_F)
        action_K = torch.softmax(torch.randn(num_domains, generator=generator), 0)
        reward_K = torch.randn(num_domains, generator=generator)
        agent.replay.add(state_F, action_K, reward_K, state_F + 0.1)


def distance_after(settings: AgentSettings, num_domains: int, seed: int, updates: int) -> tuple[float, float]:
    """L1 distance to w* before and after `updates` on the identity task: reward -‖w - w*‖² for every domain."""
    generator = torch.Generator().manual_seed(seed)
    prior_K = torch.full((num_domains,), 1 / num_domains)
    best_K = torch.softmax(0.5 * torch.randn(num_domains, generator=generator), 0)
    agent = make_agent(STATE, prior_K, settings, seed)
    state_F = torch.zeros(STATE, dtype=torch.float64)
    agent.normalizer.update(state_F)
    step = 0
    while agent.updates < updates:
        warming_up = step < 20
        noise = settings.warmup_noise if warming_up else settings.noise
        action_K = agent.act(state_F, "prior" if warming_up else "actor", noise)
        next_state_F = torch.zeros(STATE, dtype=torch.float64)
        next_state_F[0] = step / updates
        reward_K = -((action_K - best_K) ** 2).sum().expand(num_domains)
        agent.normalizer.update(next_state_F)
        agent.replay.add(state_F, action_K, reward_K, next_state_F)
        state_F, step = next_state_F, step + 1
        if not warming_up:
            agent.update()
    with torch.no_grad():
        learned_K = agent.actor(agent.normalizer(state_F))
    return float((prior_K - best_K).abs().sum()), float((learned_K - best_K).abs().sum())


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_default_learns_the_identity_task(seed: int) -> None:
    before, after = distance_after(replace(BY_GRADIENT, actor_delay=2, gamma=0.0), 5, seed, updates=400)
    assert after < 0.1, (before, after)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_mirror_ascent_finds_where_all_rewards_are_equal(seed: int, gamma: float) -> None:
    """Diminishing returns, w*_i / w_i, in noise of the same size: equal at w* only. The distilled actor knows the way there."""
    generator = torch.Generator().manual_seed(seed)
    best_K = torch.softmax(0.5 * torch.randn(5, generator=generator), 0)
    agent = make_agent(STATE, torch.full((5,), 0.2), replace(DEFAULT, gamma=gamma, anchor=0.0, step_size=0.05), seed)
    executed = []
    for step in range(400):
        state_F, next_state_F = torch.zeros(2, STATE, dtype=torch.float64)
        state_F[-1], next_state_F[-1] = step / 400, (step + 1) / 400
        agent.normalizer.update(next_state_F)
        executed.append(agent.act(state_F, "actor", 0.0))
        reward_K = best_K / executed[-1] - 1 + 0.5 * torch.randn(5, generator=generator)
        agent.replay.add(state_F, executed[-1], reward_K, next_state_F)
        agent.ascend(executed[-1], reward_K, next_state_F)
        if step > 8:
            agent.update()
    late_K = torch.stack(executed[-50:]).mean(0)
    assert float((late_K - best_K).abs().sum()) < 0.15
    agent.distil(1000)
    states_NF = torch.zeros(400, STATE, dtype=torch.float64)
    states_NF[:, -1] = torch.arange(400) / 400
    with torch.no_grad():
        told_NK = agent.actor(agent.normalizer(states_NF))
    assert float((told_NK - torch.stack(executed)).abs().sum(-1).mean()) < 0.05


def test_mirror_ascent_by_hand() -> None:
    """γ = 0, η = 0.1, λ = 0.5, one reward of 1: u ← u + 0.1 (A - 0.5 u), A = r - Σ α r, then mean-centred."""
    settings = replace(DEFAULT, gamma=0.0, step_size=0.1, anchor=0.5)
    agent = MirrorAgent(STATE, torch.full((4,), 0.25), settings, seed=0)
    state_F, reward_K = torch.zeros(STATE, dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected_K = torch.zeros(4)
    for _ in range(2):
        action_K = agent.act(state_F, "actor", 0.0)
        agent.ascend(action_K, reward_K, state_F)
        expected_K = expected_K + 0.1 * (reward_K - action_K[0] - 0.5 * expected_K)
        expected_K = expected_K - expected_K.mean()
        assert torch.allclose(agent.ascended_K, expected_K)


def test_mirror_ascent_looks_ahead_by_the_critic() -> None:
    """y = r + γ Q̄ with values that are known: A = (1-γ) (y - Σ α y)."""
    settings = replace(DEFAULT, gamma=0.9, step_size=0.1, anchor=0.5, twin_critics=False)
    agent = MirrorAgent(STATE, torch.full((4,), 0.25), settings, seed=0)
    values_K = torch.tensor([4.0, -2.0, 0.0, 2.0])
    with torch.no_grad():
        agent.target_critics[0].network[-1].bias.copy_(values_K)  # type: ignore[index, union-attr]
    action_K, reward_K = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    agent.ascend(action_K, reward_K, torch.zeros(STATE, dtype=torch.float64))
    y_K = reward_K + 0.9 * values_K
    expected_K = 0.1 * (1 - 0.9) * (y_K - (action_K * y_K).sum())
    assert torch.allclose(agent.ascended_K, expected_K - expected_K.mean())


def test_mirror_ascent_settles_at_the_anchored_optimum() -> None:
    """Constant rewards: Σ α_i r_i - λ KL(α ‖ prior) is largest at α ∝ prior exp(r / λ)."""
    prior_K = torch.tensor([0.5, 0.2, 0.2, 0.1])
    agent = make_agent(
        STATE, prior_K, replace(DEFAULT, gamma=0.0, anchor=0.5, floor_share=0.0, logit_bound=None), seed=0
    )
    state_F, reward_K = torch.zeros(STATE, dtype=torch.float64), torch.tensor([0.0, 0.4, -0.3, 0.1])
    for _ in range(500):
        agent.ascend(agent.act(state_F, "actor", 0.0), reward_K, state_F)
    best_K = prior_K * (reward_K / 0.5).exp()
    assert torch.allclose(agent.act(state_F, "actor", 0.0), best_K / best_K.sum(), atol=1e-4)


def test_domains_near_the_bound_keep_their_order() -> None:
    agent = MirrorAgent(STATE, torch.full((4,), 0.25), replace(DEFAULT, logit_bound=3.0), seed=0)
    agent.ascended_K = torch.tensor([9.0, 6.0, -5.0, -10.0])
    offsets_K = agent.choose_offsets(torch.zeros(STATE, dtype=torch.float64), "actor", None)
    assert offsets_K.diff().max() < -0.005
    assert offsets_K.max() - offsets_K.min() < 6.0


def test_an_episode_that_was_not_the_best_is_undone() -> None:
    agent = MirrorAgent(STATE, torch.full((4,), 0.25), DEFAULT, seed=0)
    best_K = torch.tensor([0.3, 0.1, -0.1, -0.3])
    agent.ascended_K = best_K
    agent.end_episode(improved=True)
    assert torch.equal(agent.ascended_K, best_K)
    agent.ascended_K = -best_K
    agent.end_episode(improved=False)
    assert torch.equal(agent.ascended_K, best_K)
    assert agent.step_share == 0.5


def test_trajectory_spans_the_run() -> None:
    trajectory = Trajectory(8, 1, 1)
    for step in range(100):
        trajectory.add(torch.tensor([step], dtype=torch.float64), torch.tensor([float(step)]))
    kept = trajectory.states_NF[: trajectory.count, 0].tolist()
    assert kept == [0.0, 16.0, 32.0, 48.0, 64.0, 80.0, 96.0]
    assert trajectory.offsets_NK[: trajectory.count, 0].tolist() == kept


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_paper_moves_toward_the_optimum(seed: int) -> None:
    before, after = distance_after(replace(PAPER, gamma=0.0), 5, seed, updates=400)
    assert after < 0.75 * before, (before, after)


@pytest.mark.parametrize("preset", [DEFAULT, BY_GRADIENT, PAPER], ids=["default", "by gradient", "paper"])
def test_every_network_moves_and_targets_follow_by_tau(preset: AgentSettings) -> None:
    settings = replace(preset, actor_delay=1, batch_size=16, replay_capacity=64, hidden=32, layers=2)
    agent = make_agent(STATE, torch.full((4,), 0.25), settings, seed=0)
    fill(agent, 40, 4)
    if isinstance(agent, MirrorAgent):
        agent.ascended_K = torch.tensor([0.3, 0.1, -0.1, -0.3])
    agent.act(torch.randn(STATE, dtype=torch.float64), "actor", 0.0)
    before = {name: snapshot(getattr(agent, name)) for name in ("actor", "critics", "target_actor", "target_critics")}
    # The critic's last layer starts at zero: its first update moves only that layer, the second moves all.
    for _ in range(3):
        previous_target = snapshot(agent.target_actor), snapshot(agent.target_critics)
        agent.update()
    for name, old in before.items():
        assert all(not torch.equal(a, b) for a, b in zip(old, snapshot(getattr(agent, name)), strict=True)), name
    pairs = ((agent.target_actor, agent.actor), (agent.target_critics, agent.critics))
    for old, (target, source) in zip(previous_target, pairs, strict=True):
        for earlier, now, online in zip(old, target.parameters(), source.parameters(), strict=True):
            assert torch.allclose(now, (1 - settings.tau) * earlier + settings.tau * online, atol=1e-7)


def test_actor_update_leaves_no_gradient_in_the_critic() -> None:
    agent = make_agent(STATE, torch.full((4,), 0.25), BY_GRADIENT, seed=0)
    fill(agent, 40, 4)
    agent.update()
    assert all(parameter.grad is None for parameter in agent.critics.parameters())


def test_starts_at_exactly_the_prior() -> None:
    prior_K = torch.tensor([0.6, 0.3, 0.099, 0.001])
    for settings in (DEFAULT, PAPER):
        actor = Actor(STATE, prior_K, settings)
        assert torch.allclose(actor(torch.randn(3, STATE)), prior_K.expand(3, 4), atol=1e-7)


def test_actions_stay_on_the_simplex_above_their_floor() -> None:
    prior_K = torch.tensor([0.6, 0.3, 0.099, 0.001])
    for settings in (DEFAULT, PAPER):
        agent = make_agent(STATE, prior_K, settings, seed=0)
        for step in range(50):
            weights_K = agent.act(torch.randn(STATE, dtype=torch.float64), "actor" if step % 2 else "prior", 3.0)
            assert weights_K.sum() == pytest.approx(1, abs=1e-5)
            assert (weights_K >= settings.floor_share * prior_K - 1e-7).all()


def test_critic_target_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    first = torch.tensor([[4.0, 2.0], [1.0, 9.0]])
    second = torch.tensor([[2.0, 2.0], [3.0, 0.0]])  # values the first action less, the second more
    assert critic_target(rewards, 0.5, weights, [first]).tolist() == [[3.0, 3.0], [0.5, 4.5]]
    assert critic_target(rewards, 0.5, weights, [first, second]).tolist() == [[2.0, 3.0], [0.5, 4.5]]


def test_objective_weights_values_by_the_action() -> None:
    weights = torch.tensor([[0.2, 0.8]])
    assert actor_objective(weights, torch.tensor([[5.0, 10.0]])).item() == pytest.approx(9.0)


def test_state_dict_continues_exactly() -> None:
    def make() -> Agent:
        return make_agent(STATE, torch.full((4,), 0.25), DEFAULT, seed=0)

    original = make()
    fill(original, 40, 4)
    original.act(torch.ones(STATE, dtype=torch.float64), "actor", 0.3)
    original.update()
    original.ascend(torch.full((4,), 0.25), torch.arange(4), torch.ones(STATE, dtype=torch.float64))
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(original.state_dict()))
    for agent in (original, resumed):
        for _ in range(3):
            agent.update()
    state_F = torch.ones(STATE, dtype=torch.float64)
    assert torch.equal(original.act(state_F, "actor", 0.3), resumed.act(state_F, "actor", 0.3))


def test_options_are_checked() -> None:
    changed = agent_settings("default", {"gamma": "0.9", "logit_bound": "none", "huber": "false", "hidden": "64"})
    assert (changed.gamma, changed.logit_bound, changed.huber, changed.hidden) == (0.9, None, False, 64)
    for options in (
        {"gama": "1"}, {"hidden": "big"}, {"huber": "yes"}, {"noise_space": "ether"}, {"ema": "1"}, {"gamma": "nan"},
        {"layers": "0"}, {"depths": "-1"}, {"floor_share": "2"}, {"smoothing": "1"}, {"replay_capacity": "0"},
        {"noise_correlation": "2"}, {"logit_bound": "0"}, {"actor_delay": "0"}, {"step_size": "inf"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            agent_settings("default", options)


@pytest.mark.parametrize(
    ("preset", "options", "guided", "where"),
    [
        ("default", {"self_term": "false"}, False, "with reward=alignment and without targets"),
        ("default", {"reward": "alignment", "crowding": "0"}, False, "with reward=fixed-step and without targets"),
        ("default", {"reward": "alignment"}, True, "without targets"),
        ("default", {"objective": "loss"}, True, "without targets"),
        ("default", {"guide_ema": "0.5"}, False, "with targets"),
        ("default", {"step_size": "0.3"}, True, "with actor_update=mirror and without targets"),
        ("default", {"guided_step_size": "0.3"}, False, "with actor_update=mirror and with targets"),
        ("default", {"smoothing": "0.5"}, False, "with actor_update=gradient"),
        ("paper", {"step_size": "0.1"}, False, "with actor_update=mirror and without targets"),
        ("paper", {"self_term": "true", "reward": "fixed-step"}, False, "with reward=alignment and without targets"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(
    preset: str, options: dict[str, str], guided: bool, where: str
) -> None:
    settings = agent_settings(preset, options)
    with pytest.raises(UsageError, match=f"only {where}; leave it out"):
        check_read(options, settings, guided)


@pytest.mark.parametrize(
    ("preset", "options", "guided"),
    [
        ("default", {"reward": "alignment", "self_term": "false", "step_size": "0.3", "ema": "0.5"}, False),
        ("default", {"crowding": "0", "objective": "loss", "anchor": "0"}, False),
        ("default", {"guided_crowding": "0", "guided_step_size": "1", "ema": "0.5"}, True),
        ("paper", {"self_term": "true", "scale": "relative", "smoothing": "0.8", "actor_delay": "2"}, False),
        ("paper", {"actor_update": "mirror", "step_size": "0.1"}, False),
    ],
)
def test_an_option_that_is_read_is_taken(preset: str, options: dict[str, str], guided: bool) -> None:
    check_read(options, agent_settings(preset, options), guided)
