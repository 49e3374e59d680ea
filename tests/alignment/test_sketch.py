"""The sketch is unbiased, its variance falls with its size, and it costs no per-domain pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acodm_cli.alignment.block_sketch import BlockSketch, num_blocks
from acodm_cli.alignment.probe import select_layers
from acodm_cli.alignment.sketch import SketchProbe
from acodm_cli.alignment.token_sample import draw_tokens
from acodm_cli.engine.loss import CausalLoss
from tests.alignment.reference import domain_gradients
from tests.alignment.test_exact import NUM_DOMAINS, make_batch, make_model, one_pass_gram, watched_step

# Where hundreds of draws are averaged: every kind of layer, and two of most.
FEW = 2


def sketched_grams(
    model: nn.Module, size: int, rotation: int, draws: int, rule: str = "all", tokens: int | None = None
) -> torch.Tensor:
    """Gram matrices of the same batch under fresh signs, blocks and tokens. [draws, K, K]"""
    batch = make_batch(missing=False, mixed_lengths=True)
    probe = SketchProbe(select_layers(model, rule), NUM_DOMAINS, True, 0, size, rotation, tokens)
    grams = [watched_step(model, probe, *batch, 4, step=draw).gram_KK for draw in range(draws)]
    probe.remove()
    return torch.stack(grams)


def test_block_sketch_keeps_inner_products_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    left_F, right_F = torch.randn(2, 70, generator=generator)
    signs = torch.randint(0, 2, (4000, num_blocks(70, 16)), generator=generator).float() * 2 - 1
    sketches = [torch.stack([BlockSketch(row, 16)(x_F) for row in signs]) for x_F in (left_F, right_F)]
    products = (sketches[0] * sketches[1]).sum(-1)
    error = products.mean() - left_F @ right_F
    assert error.abs() < 4 * products.std() / len(products) ** 0.5
    assert torch.equal(BlockSketch(signs[0, :0], 70)(left_F), left_F), "what is small stays exact"


@pytest.mark.parametrize(("size", "rotation", "tokens"), [(16, 1, None), (512, 6, 72), (32, 4, 36)])
def test_gram_matrix_is_unbiased(size: int, rotation: int, tokens: int | None) -> None:
    """Its diagonal too, whatever the number of tokens that squares are made from."""
    model = make_model(blocks=FEW)
    exact_KK = one_pass_gram(model, select_layers(model, "all"), *make_batch(missing=False, mixed_lengths=True), 9)
    grams = sketched_grams(model, size, rotation, draws=200, tokens=tokens)
    error_KK = (grams.mean(0) - exact_KK) / (grams.std(0) / len(grams) ** 0.5)
    assert error_KK.abs().max() < 4.5
    assert error_KK.square().mean() < 2.5  # as many standard errors as chance gives


def test_self_term_is_unbiased() -> None:
    """Over fresh signs, blocks and tokens: the product of the halves' gradients, and nothing of the sketch's own variance."""
    model = make_model(blocks=FEW)
    layers = select_layers(model, "all")
    batch = make_batch(missing=False, mixed_lengths=False)
    halves_B = torch.tensor([0, 0, 0, 0, 1, 0, 1, 0, 1])  # of make_batch's domains 0, 1 and 3, in turn
    weights = [layer.weight for layer in layers.values()]
    halves_GP = domain_gradients(model, weights, batch[0], batch[1], 2 * batch[2] + halves_B, 2 * NUM_DOMAINS)
    probe = SketchProbe(layers, NUM_DOMAINS, True, 0, 32, 4, 72)
    found = torch.stack([watched_step(model, probe, *batch, 9, step=draw).self_K for draw in range(200)])
    for domain in (1, 3):
        expected = halves_GP[2 * domain] @ halves_GP[2 * domain + 1]
        values = found[:, domain]
        assert (values.mean() - expected).abs() < 4 * values.std() / len(values) ** 0.5


def test_variance_falls_with_size() -> None:
    """With both sides sketched to s features the variance falls at least as 1/s, until the sides are exact."""
    model = make_model(blocks=FEW)
    mask = ~torch.eye(NUM_DOMAINS, dtype=torch.bool)
    variances = [
        float(sketched_grams(model, size, 1, draws=60, rule="mlp").var(0)[mask].mean()) for size in (8, 32, 128)
    ]
    assert variances[1] < variances[0] / 3
    assert variances[2] < variances[1] / 3
    every_side = sketched_grams(model, 512, 1, draws=2)
    exact_KK = one_pass_gram(model, select_layers(model, "all"), *make_batch(missing=False, mixed_lengths=True), 9)
    assert torch.allclose(every_side[0], exact_KK, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("seq_len", "every"), [(2, 4), (16, 4), (37, 3)])
def test_drawn_tokens_sum_to_all_of_them(seq_len: int, every: int) -> None:
    """On average, in sequences of any length: two different tokens of each stratum, and every one as often as it should."""
    sample = draw_tokens(20_000, seq_len, every, torch.Generator().manual_seed(0))
    edges = torch.from_numpy(sample.edges_S)
    one_BS, other_BS = sample.positions_Bk[:, ::2], sample.positions_Bk[:, 1::2]
    for tokens_BS in (one_BS, other_BS):
        assert ((tokens_BS >= edges[:-1]) & (tokens_BS < edges[1:])).all()
    assert (one_BS != other_BS).all()
    counted_T = torch.zeros(seq_len).index_add_(
        0, sample.positions_Bk.flatten(), sample.weights_k.expand(20_000, -1).flatten()
    )
    assert (counted_T / 20_000 - 1).abs().max() < 0.08  # five standard errors
    assert len(sample.weights_k) <= max(2, seq_len / every)


def test_draws_are_a_function_of_seed_and_step() -> None:
    first, again = (sketched_grams(make_model(), 16, 1, draws=2, tokens=36) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_model_gradient_is_untouched_and_memory_is_small() -> None:
    plain, watched = make_model(), make_model()
    batch = make_batch(missing=False, mixed_lengths=False)
    layers = select_layers(watched, "all")
    probe = SketchProbe(layers, NUM_DOMAINS, True, 0, 16, 1, 36)
    watched_step(watched, probe, *batch, 9)
    CausalLoss(plain)(batch[0][:, :-1], batch[1], 1 / batch[1].numel())[0].backward()
    for expected, found in zip(plain.parameters(), watched.parameters(), strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        assert torch.equal(expected.grad, found.grad)
    assert probe.bytes_needed(9) == 4 * len(layers) * 9 * (16 * 16 + 1)
