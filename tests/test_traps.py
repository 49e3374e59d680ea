"""The six traps of the published implementation. Each test fails if we fall into its trap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from acodm_cli.alignment.exact import ExactProbe
from acodm_cli.alignment.gram import gradient_alignment
from acodm_cli.alignment.probe import select_layers
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.loss import token_losses
from acodm_cli.mixing.acodm.agent import actor_objective
from acodm_cli.mixing.acodm.agents import make_agent
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.reward import AlignmentReward, standardise
from acodm_cli.mixing.acodm.settings import DEFAULT, PAPER
from acodm_cli.mixing.baselines.static import uniform_weights
from acodm_cli.mixing.mixer import Feedback
from tests.alignment.reference import domain_gradients
from tests.engine.test_trainer import make_trainer, static
from tests.mixing.acodm.test_agent import BY_GRADIENT
from tests.mixing.feedback import observation


@pytest.mark.parametrize("preset", [DEFAULT, replace(PAPER, hidden=64)], ids=["default", "paper"])
def test_trap_1_the_actor_is_stepped(corpus: Corpus, preset: object) -> None:
    """Not the critic twice: in a real run the actor's parameters change after the warm-up."""
    learner = AcOdmLearner(uniform_weights(4), preset, seed=0)  # type: ignore[arg-type]
    trainer = make_trainer(corpus, learner, steps=40)
    before = [parameter.detach().clone() for parameter in learner.agent.actor.parameters()]
    list(trainer.steps())
    changed = [not torch.equal(a, b) for a, b in zip(before, learner.agent.actor.parameters(), strict=True)]
    assert all(changed)


def test_trap_2_standardised_rewards_still_move_the_actor() -> None:
    """The unweighted mean of z-scores is constant; weighted by α they favour the better domain."""
    settings = replace(BY_GRADIENT, gamma=0.0)
    agent = make_agent(4, torch.full((3,), 1 / 3), settings, seed=0)
    reward_K = torch.from_numpy(standardise(np.array([5.0, 1.0, 1.0]), np.ones(3, dtype=bool)))
    assert reward_K.mean().abs() < 1e-12
    state_F = torch.zeros(4, dtype=torch.float64)
    for _ in range(32):
        agent.replay.add(state_F, agent.act(state_F, "prior", 0.3), reward_K, state_F)
    for _ in range(150):
        agent.update()
    weights_K = agent.actor(agent.normalizer(state_F))
    assert weights_K[0] > 0.45
    # The objective itself: a gradient toward the first domain, from values whose mean is zero.
    offsets_K = torch.zeros(1, 3, requires_grad=True)
    actor_objective(torch.softmax(offsets_K, -1), reward_K.float()[None]).backward()
    assert offsets_K.grad is not None
    assert offsets_K.grad[0, 0] > 0.1


def test_trap_3_differences_are_to_the_last_step(corpus: Corpus) -> None:
    trainer = make_trainer(corpus, static(depths=(0.0, 1.0)), steps=5)
    weights = trainer.norms.weights
    previous = [weight.detach().clone() for weight in weights]
    last = trainer.observation
    for _ in trainer.steps():
        now = trainer.observation
        assert np.array_equal(now.previous_losses_K, last.losses_K)
        expected = [(w - p).detach().norm().item() for w, p in zip(weights, previous, strict=True)]
        assert np.allclose(now.update_norms_L, expected, rtol=1e-5)
        previous, last = [weight.detach().clone() for weight in weights], now


def test_trap_4_each_domain_is_normalised_by_its_own_tokens_once(corpus: Corpus) -> None:
    """Very uneven domains over three micro-batches: the Gram matrix is that of the domains' mean losses, and it is
    summed where the layers are. (`tests/alignment/test_exact.py` has the other situations.)"""
    trainer = make_trainer(corpus, static())
    batch = trainer.sampler.draw(np.array([0.7, 0.1, 0.1, 0.1]))
    labels_BT = batch.tokens_BU[:, 1:]
    layers = select_layers(trainer.model, "all")
    parameters = [layer.weight for layer in layers.values()]
    gradients_KP = domain_gradients(trainer.model, parameters, batch.tokens_BU, labels_BT, batch.domains_B, 4)
    probe = ExactProbe(layers, 4, halves=False)
    probe.start(0, batch.domains_B, torch.full_like(batch.domains_B, labels_BT.shape[1]))
    for rows in (slice(0, 3), slice(3, 6), slice(6, 8)):
        probe.begin(rows, labels_BT.shape[1])
        losses_BT = token_losses(trainer.model, batch.tokens_BU[rows, :-1], labels_BT[rows])
        (losses_BT.sum() / labels_BT.numel()).backward()
    devices = {virtual.grad.device for virtual in probe.virtual.values() if virtual.grad is not None}
    assert devices == {layer.weight.device for layer in layers.values()}
    gram_KK = probe.finish().gram_KK
    assert torch.allclose(gram_KK, gradients_KP @ gradients_KP.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_domains", [2, 7, 22, 40])
def test_trap_5_importance_correction_for_any_number_of_domains(num_domains: int) -> None:
    reward = AlignmentReward(num_domains, ema=0.5)
    weights_K = np.arange(1, num_domains + 1) / np.arange(1, num_domains + 1).sum()
    gram_KK = np.ones((num_domains, num_domains))
    value_K = reward.update(gram_KK, weights_K, np.ones(num_domains, dtype=bool))
    assert np.allclose(value_K, (num_domains - 1) / weights_K)

    state = replace(
        observation(),
        step=0,
        samples_K=np.ones(num_domains),
        losses_K=np.ones(num_domains),
        previous_losses_K=np.ones(num_domains),
    )
    learner = AcOdmLearner(uniform_weights(num_domains), replace(DEFAULT, reward="alignment", self_term=False), seed=0)
    drawn_K = learner.weights(state)
    report = learner.observe(
        Feedback(state, drawn_K, np.ones(num_domains), gram_KK, None, None, replace(state, step=1))
    )
    assert report.reward_K is not None
    assert np.allclose(report.reward_K, (num_domains - 1) / drawn_K)


def test_trap_6_default_layers_see_the_full_gradient(corpus: Corpus) -> None:
    """W of the default layers agrees with W of all parameters, where three MLP matrices do not."""
    trainer = make_trainer(corpus, static(), steps=60)
    list(trainer.steps())
    model = trainer.model
    mlp = list(select_layers(model, "*.mlp.dense_4h_to_h"))
    selections = {"all": "all", "three": ",".join([mlp[0], mlp[2], mlp[4]])}
    truths: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in selections}
    for _ in range(6):
        batch = trainer.sampler.draw(uniform_weights(4))
        labels_BT = batch.tokens_BU[:, 1:]
        everything = domain_gradients(model, list(model.parameters()), batch.tokens_BU, labels_BT, batch.domains_B, 4)
        truths.append(gradient_alignment((everything @ everything.T).numpy()))
        for name, rule in selections.items():
            weights = [layer.weight for layer in select_layers(model, rule).values()]
            part = domain_gradients(model, weights, batch.tokens_BU, labels_BT, batch.domains_B, 4)
            found[name].append(gradient_alignment((part @ part.T).numpy()))
    truth = np.concatenate(truths)
    correlation = {name: np.corrcoef(np.concatenate(values), truth)[0, 1] for name, values in found.items()}
    assert correlation["all"] > 0.95, correlation
    assert correlation["all"] > correlation["three"], correlation
