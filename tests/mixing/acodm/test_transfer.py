"""A policy on a corpus of other domains, told what a trainer would tell of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from acodm_cli.errors import UsageError
from acodm_cli.mixing.acodm.policy import FrozenPolicy, dump_policy, load_policy
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.acodm.transfer import TransferredPolicy, make_mapped_mixer
from acodm_cli.mixing.domain_map import DomainMap, read_map
from acodm_cli.mixing.mapped import MappedMixer
from acodm_cli.mixing.mixer import Array, Feedback, Observation, Task
from tests.mixing.acodm.test_policy import DOMAINS, trained_agent
from tests.mixing.feedback import observation
from tests.schedule.test_schedule import make_schedule

SPLIT = read_map({"b": "b1+b2+b3"}, DOMAINS, {"a": 7, "b1": 1, "b2": 4, "b3": 5, "c": 3})
MERGED = read_map({"a": "x", "c": "x"}, DOMAINS, {"b": 2, "x": 2})


def policy() -> FrozenPolicy:
    return load_policy(dump_policy(trained_agent(), DOMAINS), DOMAINS, DEFAULT)


def told(samples_SK: Array, losses_SK: Array) -> Iterator[Observation]:
    """What a trainer tells before each step: of domains that were not drawn, the loss that it knew."""
    now = observation()
    known_K = np.full(samples_SK.shape[1], now.max_loss)
    yield replace(now, step=0, samples_K=0 * known_K, losses_K=known_K, previous_losses_K=known_K)
    for step, (samples_K, losses_K) in enumerate(zip(samples_SK, losses_SK, strict=True), 1):
        before_K, known_K = known_K, np.where(samples_K > 0, losses_K, known_K)
        yield replace(now, step=step, samples_K=samples_K, losses_K=known_K, previous_losses_K=before_K)


def drawn(generator: np.random.Generator, domains: int, steps: int = 30) -> tuple[Array, Array]:
    """Batches of 8, in which some domains are missing, and losses. [S, K] each"""
    samples_SK = generator.multinomial(8, generator.dirichlet(np.ones(domains)), steps).astype(np.float64)
    return samples_SK, generator.uniform(1, 5, (steps, domains))


def test_a_split_domain_looks_as_in_one_piece() -> None:
    samples_SK, losses_SK = drawn(np.random.default_rng(0), 5)
    parts = slice(1, 4)
    whole_S = samples_SK[:, parts].sum(axis=1)
    mean_S = (samples_SK * losses_SK)[:, parts].sum(axis=1) / np.maximum(whole_S, 1)
    assert 0 < (whole_S == 0).sum() < 30, "there are steps without any of its parts"
    whole_SM = np.stack([samples_SK[:, 0], whole_S, samples_SK[:, 4]], axis=1)
    mean_SM = np.stack([losses_SK[:, 0], mean_S, losses_SK[:, 4]], axis=1)
    whole, split = policy(), MappedMixer(policy(), SPLIT)
    seen = []
    for of_whole, of_parts in zip(told(whole_SM, mean_SM), told(samples_SK, losses_SK), strict=True):
        weights_M, weights_K = whole.weights(of_whole), split.weights(of_parts)
        assert weights_K.sum() == pytest.approx(1)
        assert np.allclose([weights_K[0], weights_K[parts].sum(), weights_K[4]], weights_M, atol=1e-6)
        assert np.allclose(weights_K[parts] / weights_K[parts].sum(), [0.1, 0.4, 0.5])
        seen.append(weights_M)
    assert np.ptp(seen, axis=0).min() > 0.01, "the policy reacts to what it sees"


def test_merged_domains_have_the_loss_of_the_whole_and_their_part_of_the_batch() -> None:
    samples_SK, losses_SK = drawn(np.random.default_rng(1), 2)
    mixer = MappedMixer(policy(), MERGED)
    last_M = np.ones(3)
    for of_run in told(samples_SK, losses_SK):
        weights_K = mixer.weights(of_run)
        a, b, c = mixer.weights_M
        assert mixer.map.divided(mixer.weights_M) == pytest.approx(weights_K)
        assert weights_K == pytest.approx([a + c, b])
        samples_M, losses_M = mixer.observation.samples_K, mixer.observation.losses_K
        of_x, of_b = of_run.samples_K
        assert samples_M == pytest.approx(
            [of_x * last_M[0] / (last_M[0] + last_M[2]), of_b, of_x * last_M[2] / (last_M[0] + last_M[2])]
        )
        assert losses_M == pytest.approx(of_run.losses_K[[0, 1, 0]])
        last_M = mixer.weights_M


def test_a_domain_that_is_left_out_looks_like_the_others_and_a_new_one_is_not_seen() -> None:
    fewer = read_map({"c": "", "": "new"}, DOMAINS, {"a": 1, "b": 1, "new": 2})
    samples_SK, losses_SK = drawn(np.random.default_rng(2), 3)
    mixer = MappedMixer(policy(), fewer)
    for of_run in told(samples_SK, losses_SK):
        weights_K = mixer.weights(of_run)
        assert weights_K[2] == pytest.approx(0.5)
        assert weights_K[0] / weights_K[1] == pytest.approx(mixer.weights_M[0] / mixer.weights_M[1])
        assert mixer.observation.samples_K == pytest.approx([*of_run.samples_K[:2], 0])
        assert mixer.observation.losses_K == pytest.approx([*of_run.losses_K[:2], of_run.losses_K[:2].mean()])
        assert mixer.observation.previous_losses_K == pytest.approx(
            [*of_run.previous_losses_K[:2], of_run.previous_losses_K[:2].mean()]
        )


@pytest.mark.parametrize("domain_map", [SPLIT, MERGED])
def test_goes_on_from_its_state(domain_map: DomainMap) -> None:
    calm, stopped = MappedMixer(policy(), domain_map), MappedMixer(policy(), domain_map)
    for step, of_run in enumerate(told(*drawn(np.random.default_rng(3), len(domain_map.tokens)))):
        if step in (0, 9):
            state = stopped.state_dict()
            stopped = MappedMixer(policy(), domain_map)
            stopped.load_state_dict(state)
        assert np.array_equal(stopped.weights(of_run), calm.weights(of_run))


def test_what_happened_is_told_in_the_schedules_domains() -> None:
    mixer = MappedMixer(policy(), SPLIT)
    before, after = list(told(*drawn(np.random.default_rng(4), 5, steps=1)))
    weights_K = mixer.weights(before)
    assert mixer.observe(Feedback(before, weights_K, after.samples_K, None, None, None, after)).phase == "policy"
    again = mixer._seen(after)
    mixer.weights(after)
    assert np.array_equal(mixer.observation.previous_losses_K, again.previous_losses_K), "looking changes nothing"


def test_the_learner_departs_from_the_divided_policy() -> None:
    learned = replace(make_schedule(), domains=DOMAINS, policy=dump_policy(trained_agent(), DOMAINS))
    tokens_K = np.array(list(SPLIT.tokens.values()), dtype=np.float64)
    task = Task(
        list(SPLIT.tokens), tokens_K, tokens_K / tokens_K.sum(), options={"warmup_noise": "0"}, schedule=learned
    )
    learner, frozen = make_mapped_mixer("ac-odm", task, SPLIT), MappedMixer(policy(), SPLIT)
    for of_run in told(*drawn(np.random.default_rng(5), 5)):
        assert np.allclose(learner.weights(of_run), frozen.weights(of_run), atol=1e-6)
    assert learner.policy_bytes(task.domains) is not None
    with pytest.raises(UsageError, match="which cannot take other domains; use --agent default, or --mode policy"):
        make_mapped_mixer("ac-odm", replace(task, preset="paper", options=None), SPLIT)


def test_an_initial_policy_without_a_domain_stays_finite() -> None:
    gone = read_map({"c": ""}, DOMAINS, {"a": 1, "b": 3})
    initial = TransferredPolicy(policy(), gone)
    assert initial.prior_K.sum() == pytest.approx(1)
    for of_run in told(*drawn(np.random.default_rng(6), 2)):
        offsets_K = initial.offsets(of_run)
        assert torch.isfinite(offsets_K).all()
        assert offsets_K.mean() == pytest.approx(0, abs=1e-6)
