from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.mirror import MirrorAgent
from acodm_cli.mixing.acodm.policy import dump_policy, load_policy
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.acodm.state import encode_state
from acodm_cli.mixing.mixer import Feedback
from acodm_cli.mixing.objective import Objective
from tests.mixing.feedback import feedback, observation, random_feedback

DOMAINS = ["a", "b", "c"]
THIRD = np.full(3, 1 / 3)
GRAM = [[9.0, 1.0, 2.0], [1.0, 8.0, 3.0], [2.0, 3.0, 7.0]]
# One step after the warm-up of 10 steps; losses differ, weights differ, and no self term is the noisy diagonal.
STEP = feedback((0.5, 0.3, 0.2), step=12, losses=(1.0, 2.0, 3.0), gram_KK=GRAM, self_K=[4.0, 5.0, 6.0])

# Of that step: H with the unbiased squares on its diagonal, and what each domain's loss counts in the mean perplexity.
TABLE = np.array([[4.0, 1.0, 2.0], [1.0, 5.0, 3.0], [2.0, 3.0, 6.0]])
COSTS = np.exp([1.0, 2.0, 3.0]) / np.exp([1.0, 2.0, 3.0]).mean()
BY_ALIGNMENT = replace(DEFAULT, reward="alignment")


def learned(steps: int) -> AcOdmLearner:
    learner = AcOdmLearner(THIRD, DEFAULT, seed=0)
    for step in range(1, steps + 1):
        weights_K = learner.weights(observation(step - 1))
        learner.learn()
        learner.observe(random_feedback(np.random.default_rng(step), step, weights_K))
    return learner


def test_reward_by_alignment_by_hand() -> None:
    """Σ_j c_j H_ij / P_i with c ∝ exp(ℓ), ‖g_i‖² on the diagonal."""
    report = AcOdmLearner(THIRD, BY_ALIGNMENT, seed=0).observe(STEP)
    expected_K = [sum(COSTS[j] * TABLE[i][j] for j in range(3)) / (0.5, 0.3, 0.2)[i] for i in range(3)]
    assert report.reward_K == pytest.approx(expected_K)
    without = AcOdmLearner(THIRD, replace(BY_ALIGNMENT, objective="loss", importance=False), seed=0)
    assert without.observe(STEP).reward_K == pytest.approx(TABLE.sum(axis=1))


@pytest.mark.parametrize("crowding", [1.0, 0.5])
def test_reward_for_steps_of_a_fixed_size_by_hand(crowding: float) -> None:
    """(h_i - κ (h·α) / (αᵀHα) (Hα)_i) / s_i with h_i = Σ_j c_j H_ij; the agent sees it over the mean of |h_i / s_i|."""
    learner = AcOdmLearner(THIRD, replace(DEFAULT, crowding=crowding), seed=0)
    report, weights_K = learner.observe(STEP), np.array([0.5, 0.3, 0.2])
    gain_K, mixed_K = TABLE @ COSTS, TABLE @ weights_K
    # What a batch's own ‖g_i‖² is above the unbiased one is the noise of as many sequences as there were.
    samples_K = STEP.samples_K
    squares_K = np.diag(TABLE) + (np.diag(GRAM) - np.diag(TABLE)) * samples_K / samples_K.sum()
    sizes_K = np.sqrt(squares_K + weights_K @ squares_K)
    already_K = gain_K @ weights_K / (weights_K @ mixed_K) * mixed_K
    expected_K = (gain_K - crowding * already_K) / sizes_K
    assert report.reward_K == pytest.approx(expected_K)
    seen_K = learner.agent.replay.columns[2][0].numpy()
    assert seen_K == pytest.approx(expected_K / np.abs(gain_K / sizes_K).mean())


def test_stores_the_transition_that_happened() -> None:
    learner = AcOdmLearner(THIRD, BY_ALIGNMENT, seed=0)
    reward_K = learner.observe(STEP).reward_K
    assert reward_K is not None
    state, action, reward, after = (column[0].numpy() for column in learner.agent.replay.columns)
    assert state == pytest.approx(encode_state(STEP.observation))
    assert after == pytest.approx(encode_state(STEP.next_observation))
    assert action == pytest.approx(STEP.weights_K)
    assert reward == pytest.approx(reward_K / np.abs(reward_K).mean() - 1)


def test_ascends_after_the_warm_up_only() -> None:
    warmed_up = DEFAULT.warmup_steps(100)
    before, after = (learned(steps).agent for steps in (warmed_up, warmed_up + 1))
    assert isinstance(before, MirrorAgent)
    assert isinstance(after, MirrorAgent)
    assert not before.ascended_K.any()
    assert after.ascended_K.any()


def test_continues_a_transferred_policy_from_what_it_would_do() -> None:
    teacher = learned(60)
    with torch.no_grad():
        teacher.agent.actor.network[-1].bias.copy_(torch.tensor([0.5, 0.0, -0.5]))  # type: ignore[operator]
    data = dump_policy(teacher.agent, DOMAINS)
    frozen, initial = (load_policy(data, DOMAINS, DEFAULT) for _ in range(2))
    learner = AcOdmLearner(THIRD, replace(DEFAULT, warmup_noise=0.0), seed=1, initial=initial)
    for step in range(1, 30):
        now = observation(step - 1)
        weights_K = learner.weights(now)
        told_K = frozen.weights(now)
        assert not np.allclose(told_K, THIRD, atol=0.01)
        if step <= DEFAULT.warmup_steps(100) + 1:
            assert weights_K == pytest.approx(told_K, abs=1e-6)
        else:
            assert not np.allclose(weights_K, told_K, atol=1e-6)
        learner.learn()
        learner.observe(random_feedback(np.random.default_rng(step), step, weights_K))


def test_closed_domain_does_not_divide_by_nothing() -> None:
    learner = AcOdmLearner(THIRD, DEFAULT, seed=0)
    report = learner.observe(Feedback(**{**vars(STEP), "weights_K": np.array([1.0, 0.0, 0.0])}))
    assert report.reward_K is not None
    assert np.isfinite(report.reward_K).all()


def test_an_episode_begins_with_what_was_learned_and_nothing_of_the_model() -> None:
    learner = learned(40)
    agent = learner.agent
    assert isinstance(agent, MirrorAgent)
    ascended_K, transitions = agent.ascended_K.clone(), len(agent.replay)
    learner.end_episode(3.0, left=1)
    assert (agent.trajectory.count, len(agent.replay)) == (0, transitions)
    assert not learner.reward.pairs.average.seen.any()
    assert not learner.losses.seen.any()
    assert learner.weights(observation(0)) == pytest.approx(
        agent.actor.weights(agent._bounded(ascended_K)).numpy(), abs=1e-6
    )
    assert not learner.exploring
    assert agent.trajectory.count == 1
    again = AcOdmLearner(THIRD, DEFAULT, seed=0)
    again.load_state_dict(learner.state_dict())
    again.weights(observation(1))
    assert not again.exploring


def test_the_cost_is_what_is_rewarded() -> None:
    losses_K, weighted = np.array([1.0, 2.0, 4.0]), Objective(weights_J=(2.0, 1.0, 1.0))
    learner = AcOdmLearner(THIRD, DEFAULT, seed=0)
    assert learner.cost(weighted, losses_K) == pytest.approx(np.log((2 * np.exp(1) + np.exp(2) + np.exp(4)) / 4))
    in_nats = AcOdmLearner(THIRD, replace(DEFAULT, objective="loss"), seed=0)
    assert in_nats.cost(weighted, losses_K) == pytest.approx(2.0)
    assert learner.cost(Objective(("a", "b", "c"), (1.0, 1.0, 2.0)), losses_K) == pytest.approx(2.75)
