"""Guide passes: the gradients of targets beside those of the batch, without a gradient of a parameter."""

from __future__ import annotations

import pytest
import torch

from acodm_cli.alignment.exact import ExactProbe
from acodm_cli.alignment.probe import DomainGradients, GradientProbe, select_layers
from acodm_cli.alignment.sketch import SketchProbe
from acodm_cli.engine.loss import IGNORED, CausalLoss
from tests.alignment.reference import domain_gradients
from tests.alignment.test_exact import CPU, NUM_DOMAINS, make_batch, make_model

NUM_GUIDES = 2
GUIDES_R = torch.tensor([0, 1, 0])


def make_guide() -> tuple[torch.Tensor, torch.Tensor]:
    tokens_RU = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(2))
    labels_RT = tokens_RU[:, 1:].clone()
    labels_RT[1, :9] = IGNORED  # a prompt
    return tokens_RU, labels_RT


def guided_step(model: torch.nn.Module, probe: GradientProbe, micro_batch: int, step: int = 0) -> DomainGradients:
    tokens_BU, labels_BT, domains_B = make_batch(missing=True, mixed_lengths=True)
    tokens_RU, labels_RT = make_guide()
    tokens_B, tokens_R = ((labels != IGNORED).sum(dim=1) for labels in (labels_BT, labels_RT))
    loss, scale = CausalLoss(model), 1 / int(tokens_B.sum())
    probe.start(step, domains_B, tokens_B, GUIDES_R, tokens_R)
    for start in range(0, len(tokens_BU), micro_batch):
        rows = slice(start, min(start + micro_batch, len(tokens_BU)))
        probe.begin(rows, labels_BT.shape[1])
        loss(tokens_BU[rows, :-1], labels_BT[rows], scale, probe)[0].backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    probe.begin(slice(len(tokens_BU), len(tokens_BU) + 3), labels_RT.shape[1])
    total = loss(tokens_RU[:, :-1], labels_RT, scale, probe, of_weights=False)[0]
    torch.autograd.backward(total, inputs=probe.leaves())
    for parameter, grad in zip(model.parameters(), before, strict=True):
        assert (parameter.grad is None) if grad is None else torch.equal(parameter.grad, grad)  # type: ignore[arg-type]
    return probe.finish()


def expected_KJ(model: torch.nn.Module, rule: str) -> torch.Tensor:
    """By K + J passes of autograd."""
    weights = [layer.weight for layer in select_layers(model, rule).values()]
    of_domains_KP = domain_gradients(model, weights, *make_batch(missing=True, mixed_lengths=True), NUM_DOMAINS)
    of_guides_JP = domain_gradients(model, weights, *make_guide(), GUIDES_R, NUM_GUIDES)
    return of_domains_KP @ of_guides_JP.T


@pytest.mark.parametrize("model_name", ["pythia-14m", "llama-tiny"])
@pytest.mark.parametrize("rule", ["all", "embedding", "unembedding", "mlp"])
@pytest.mark.parametrize("micro_batch", [9, 4])
@pytest.mark.parametrize("halves", [False, True])
def test_equals_autograd(model_name: str, rule: str, micro_batch: int, halves: bool) -> None:
    model = make_model(model_name)
    probe = ExactProbe(select_layers(model, rule), NUM_DOMAINS, halves, num_guides=NUM_GUIDES)
    found = guided_step(model, probe, micro_batch)
    expected = expected_KJ(model, rule)
    present = torch.tensor([True, True, True, False, True])
    assert (found.guide_KJ - expected)[present].abs().max() <= 1e-5 * expected.abs().max()
    assert found.guide_KJ[3].isnan().all(), "a domain that is not in the batch is unknown, not indifferent"


def test_guides_do_not_change_what_the_batch_says() -> None:
    model = make_model()
    layers = select_layers(model, "all")
    with_guide = guided_step(model, ExactProbe(layers, NUM_DOMAINS, True, num_guides=NUM_GUIDES), 9)
    probe = ExactProbe(layers, NUM_DOMAINS, True, num_guides=NUM_GUIDES)
    tokens_BU, labels_BT, domains_B = make_batch(missing=True, mixed_lengths=True)
    tokens_B = (labels_BT != IGNORED).sum(dim=1)
    probe.start(0, domains_B, tokens_B)
    probe.begin(slice(0, 9), labels_BT.shape[1])
    CausalLoss(model)(tokens_BU[:, :-1], labels_BT, 1 / int(tokens_B.sum()), probe)[0].backward()
    without = probe.finish()
    assert torch.equal(without.gram_KK, with_guide.gram_KK)
    assert torch.equal(without.self_K.nan_to_num(), with_guide.self_K.nan_to_num())
    assert without.guide_KJ.isnan().all()


def test_the_sketch_is_unbiased() -> None:
    model = make_model(blocks=2)  # every kind of layer, and two of most
    expected = expected_KJ(model, "all")
    probe = SketchProbe(select_layers(model, "all"), NUM_DOMAINS, True, 0, 16, 2, 72, CPU, NUM_GUIDES)
    found = torch.stack([guided_step(model, probe, 9, step).guide_KJ for step in range(600)])
    error = found.std(0) / len(found) ** 0.5
    present = torch.tensor([True, True, True, False, True])
    assert ((found.mean(0) - expected).abs() <= 4 * error)[present].all()
    assert (error[present] < 0.25 * expected.abs().max()).all()
