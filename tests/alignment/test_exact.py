"""The Gram matrix from the one backward pass equals the one from K autograd passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import distributed, multiprocessing, nn

from acodm_cli.alignment.exact import ExactProbe
from acodm_cli.alignment.probe import DomainGradients, GradientProbe, Layer, select_layers
from acodm_cli.alignment.sketch import SketchProbe
from acodm_cli.engine.loss import IGNORED, CausalLoss, token_losses
from acodm_cli.engine.models import build_model, model_config, transformer_blocks
from acodm_cli.errors import UsageError
from tests.alignment.reference import domain_gradients

NUM_DOMAINS = 5
CPU = torch.device("cpu")


def make_model(name: str = "pythia-14m", tied: bool = False, blocks: int | None = None) -> nn.Module:
    """blocks: how many there are; None for as many as the preset has."""
    config = model_config(name, 256, 16)
    config.tie_word_embeddings = tied
    config.num_hidden_layers = blocks or config.num_hidden_layers
    return build_model(config, seed=0, device=CPU)


def make_batch(missing: bool, mixed_lengths: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens_BU = torch.randint(256, (9, 17), generator=generator)
    domains_B = torch.tensor([0, 3, 1, 2, 0, 4, 3, 0, 1])
    if missing:
        domains_B[domains_B == 3] = 4
    labels_BT = tokens_BU[:, 1:].clone()
    if mixed_lengths:
        for row in range(len(labels_BT)):
            labels_BT[row, 4 + row :] = IGNORED
    return tokens_BU, labels_BT, domains_B


def one_pass_gram(
    model: nn.Module,
    layers: dict[str, Layer],
    tokens_BU: torch.Tensor,
    labels_BT: torch.Tensor,
    domains_B: torch.Tensor,
    micro_batch: int,
) -> torch.Tensor:
    probe = ExactProbe(layers, NUM_DOMAINS, halves=False)
    gradients = watched_step(model, probe, tokens_BU, labels_BT, domains_B, micro_batch)
    probe.remove()
    return gradients.gram_KK


def watched_step(
    model: nn.Module,
    probe: GradientProbe,
    tokens_BU: torch.Tensor,
    labels_BT: torch.Tensor,
    domains_B: torch.Tensor,
    micro_batch: int,
    step: int = 0,
) -> DomainGradients:
    tokens_B = (labels_BT != IGNORED).sum(dim=1)
    loss = CausalLoss(model)
    probe.start(step, domains_B, tokens_B)
    for start in range(0, len(tokens_BU), micro_batch):
        rows = slice(start, start + micro_batch)
        probe.begin(rows, labels_BT.shape[1])
        loss(tokens_BU[rows, :-1], labels_BT[rows], 1 / int(tokens_B.sum()), probe)[0].backward()
    return probe.finish()


@pytest.mark.parametrize("model_name", ["pythia-14m", "llama-tiny"])
@pytest.mark.parametrize("layers_rule", ["mlp", "attention", "embedding", "unembedding", "all"])
@pytest.mark.parametrize("micro_batch", [9, 4])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("mixed_lengths", [False, True])
def test_equals_autograd(
    model_name: str, layers_rule: str, micro_batch: int, missing: bool, mixed_lengths: bool
) -> None:
    model = make_model(model_name)
    layers = select_layers(model, layers_rule)
    tokens_BU, labels_BT, domains_B = make_batch(missing, mixed_lengths)
    weights = [layer.weight for layer in layers.values()]
    gradients_KP = domain_gradients(model, weights, tokens_BU, labels_BT, domains_B, NUM_DOMAINS)
    expected_KK = gradients_KP @ gradients_KP.T

    gram_KK = one_pass_gram(model, layers, tokens_BU, labels_BT, domains_B, micro_batch)

    assert (gram_KK - expected_KK).abs().max() <= 1e-5 * expected_KK.abs().max()
    if missing:
        assert (gram_KK[3] == 0).all()
        assert (gram_KK[:, 3] == 0).all()


def test_model_gradient_is_untouched() -> None:
    tokens_BU, labels_BT, domains_B = make_batch(missing=False, mixed_lengths=False)
    plain, watched = make_model(), make_model()
    (token_losses(plain, tokens_BU[:, :-1], labels_BT).sum() / labels_BT.numel()).backward()
    one_pass_gram(watched, select_layers(watched, "all"), tokens_BU, labels_BT, domains_B, 9)
    for expected, found in zip(plain.parameters(), watched.parameters(), strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        assert torch.equal(expected.grad, found.grad)


def test_one_forward_and_one_backward() -> None:
    """Watching adds no pass: each layer runs forward once per micro-batch, and backward once."""
    model = make_model()
    calls = {"forward": 0, "backward": 0}
    block = select_layers(model, "mlp")["gpt_neox.layers.0.mlp.dense_h_to_4h"]
    block.register_forward_hook(lambda *_: calls.__setitem__("forward", calls["forward"] + torch.is_grad_enabled()))
    block.register_full_backward_hook(lambda *_: calls.__setitem__("backward", calls["backward"] + 1))
    tokens_BU, labels_BT, domains_B = make_batch(missing=False, mixed_lengths=False)
    one_pass_gram(model, select_layers(model, "all"), tokens_BU, labels_BT, domains_B, 4)
    assert calls == {"forward": 3, "backward": 3}


def test_second_step_starts_afresh() -> None:
    model = make_model()
    layers = select_layers(model, "mlp")
    batch = make_batch(missing=False, mixed_lengths=False)
    first = one_pass_gram(model, layers, *batch, 9)
    assert torch.equal(first, one_pass_gram(model, layers, *batch, 9))


@pytest.mark.parametrize(
    "situation", ["plain", "tied", "checkpointing", "bf16", pytest.param("compiled", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("model_name", ["pythia-14m", "llama-tiny"])
@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_equals_autograd_in_every_situation(estimator: str, model_name: str, situation: str) -> None:
    """Ignored tokens, an absent domain and micro-batches in all of them. The sketch, with sides as large as the layers',
    is exact too, and its unembedding is watched by the fused loss."""
    model = make_model(model_name, tied=situation == "tied")
    if situation == "checkpointing":
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    batch = tokens_BU, labels_BT, domains_B = make_batch(missing=True, mixed_lengths=True)
    layers = select_layers(model, "all")
    weights = list({id(layer.weight): layer.weight for layer in layers.values()}.values())
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=situation == "bf16")
    with autocast:
        gradients_KP = domain_gradients(model, weights, tokens_BU, labels_BT, domains_B, NUM_DOMAINS)
    probe = (
        ExactProbe(layers, NUM_DOMAINS, halves=True)
        if estimator == "exact"
        else SketchProbe(layers, NUM_DOMAINS, True, 0, 512)
    )
    if situation == "compiled":
        torch._dynamo.reset()
        # As the engine does. What is traced matters here, not what code is made of it, which takes most of a minute.
        for block in transformer_blocks(model):
            block.compile(fullgraph=True, backend="aot_eager")
    with autocast:
        gram_KK = watched_step(model, probe, *batch, 3).gram_KK
    expected_KK = gradients_KP @ gradients_KP.T
    tolerance = 0.01 if situation == "bf16" else 1e-5
    assert (gram_KK - expected_KK).abs().max() <= tolerance * expected_KK.abs().max()
    assert (gram_KK[3] == 0).all()


@pytest.mark.parametrize("rule", ["embedding", "unembedding"])
def test_a_tied_weight_is_watched_wherever_it_is_used(rule: str) -> None:
    model = make_model(tied=True)
    layers = select_layers(model, rule)
    assert len(layers) == 2
    batch = make_batch(missing=False, mixed_lengths=False)
    weight = next(iter(layers.values())).weight
    gradients_KP = domain_gradients(model, [weight], *batch, NUM_DOMAINS)
    expected_KK = gradients_KP @ gradients_KP.T
    assert (one_pass_gram(model, layers, *batch, 9) - expected_KK).abs().max() <= 1e-5 * expected_KK.abs().max()


def test_layers_that_see_merged_sequences() -> None:
    """OPT runs its MLP on [B·T, I]."""
    config = transformers.OPTConfig(
        vocab_size=512,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        dropout=0.0,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.OPTForCausalLM(config)
    layers = select_layers(model, "all")
    batch = make_batch(missing=False, mixed_lengths=False)
    weights = list({id(layer.weight): layer.weight for layer in layers.values()}.values())
    gradients_KP = domain_gradients(model, weights, *batch, NUM_DOMAINS)
    expected_KK = gradients_KP @ gradients_KP.T
    assert (one_pass_gram(model, layers, *batch, 4) - expected_KK).abs().max() <= 1e-5 * expected_KK.abs().max()


def test_a_layer_that_sees_some_tokens_only_is_named() -> None:
    model = make_model()
    layers = select_layers(model, "mlp")
    own = layers["gpt_neox.layers.0.mlp.dense_h_to_4h"]
    probe = ExactProbe(layers, NUM_DOMAINS, halves=False)
    probe.start(0, torch.zeros(2, dtype=torch.int64), torch.full((2,), 4))
    probe.begin(slice(None), 4)
    with pytest.raises(UsageError, match=r"layers.0.mlp.dense_h_to_4h .* does not see whole sequences"):
        own(torch.zeros(5, own.weight.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_two_ranks_see_what_one_sees(estimator: str, tmp_path: Path) -> None:
    """Each rank runs its rows of the global batch; one all-reduce later both hold the Gram matrix of the whole."""
    alone = gradients_of_rank(estimator, slice(None))
    multiprocessing.spawn(  # type: ignore[attr-defined]
        run_rank, (estimator, str(tmp_path)), nprocs=2
    )
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(found["gram_KK"], alone.gram_KK, rtol=1e-4, atol=1e-6)
        assert torch.allclose(found["self_K"], alone.self_K, rtol=1e-4, atol=1e-6, equal_nan=True)


def gradients_of_rank(estimator: str, rows: slice) -> DomainGradients:
    model = make_model()
    layers = select_layers(model, "all")
    probe: GradientProbe = (
        ExactProbe(layers, NUM_DOMAINS, halves=True)
        if estimator == "exact"
        else SketchProbe(layers, NUM_DOMAINS, True, 0, 16, 3, 36)
    )
    tokens_BU, labels_BT, domains_B = make_batch(missing=True, mixed_lengths=True)
    tokens_B = (labels_BT != IGNORED).sum(dim=1)
    probe.start(7, domains_B, tokens_B)
    probe.begin(rows, labels_BT.shape[1])
    CausalLoss(model)(tokens_BU[rows, :-1], labels_BT[rows], 1 / int(tokens_B.sum()), probe)[0].backward()
    return probe.finish()


def run_rank(rank: int, estimator: str, folder: str) -> None:
    store = distributed.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = gradients_of_rank(estimator, slice(0, 5) if rank == 0 else slice(5, None))
    torch.save(vars(found), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_selection_by_pattern_and_its_error() -> None:
    model = make_model()
    assert list(select_layers(model, "*.1.mlp.dense_4h_to_h")) == ["gpt_neox.layers.1.mlp.dense_4h_to_h"]
    assert len(select_layers(model, "mlp,unembedding")) == 13
    assert len(select_layers(model, "all")) == 26
    with pytest.raises(UsageError, match="selects no layer"):
        select_layers(model, "convolution")


@pytest.mark.gpu
def test_gradients_stay_on_the_device() -> None:
    model = make_model().cuda()
    layers = select_layers(model, "all")
    probe = ExactProbe(layers, NUM_DOMAINS, halves=False)
    tokens_BU, labels_BT, domains_B = make_batch(missing=False, mixed_lengths=False)
    watched_step(model, probe, tokens_BU.cuda(), labels_BT.cuda(), domains_B, 9)
    assert all(virtual.grad is not None and virtual.grad.is_cuda for virtual in probe.virtual.values())


def test_halves_give_the_self_term_of_independent_samples() -> None:
    """By hand: the product of the two halves' own mean gradients. Domains with one sequence have none."""
    model = make_model()
    layers = select_layers(model, "all")
    weights = [layer.weight for layer in layers.values()]
    tokens_BU, labels_BT, domains_B = make_batch(missing=False, mixed_lengths=True)
    probe = ExactProbe(layers, NUM_DOMAINS, halves=True)
    found = watched_step(model, probe, tokens_BU, labels_BT, domains_B, 4)
    probe.remove()
    halves_B = torch.zeros_like(domains_B)
    for domain in range(NUM_DOMAINS):
        rows = (domains_B == domain).nonzero().squeeze(1)
        halves_B[rows[1::2]] = 1
    halves_GP = domain_gradients(model, weights, tokens_BU, labels_BT, 2 * domains_B + halves_B, 2 * NUM_DOMAINS)
    whole_KP = domain_gradients(model, weights, tokens_BU, labels_BT, domains_B, NUM_DOMAINS)
    assert torch.allclose(found.gram_KK, whole_KP @ whole_KP.T, rtol=1e-4, atol=1e-6)
    for domain in range(NUM_DOMAINS):
        if (domains_B == domain).sum() < 2:
            assert found.self_K[domain].isnan()
        else:
            expected = halves_GP[2 * domain] @ halves_GP[2 * domain + 1]
            assert found.self_K[domain].item() == pytest.approx(expected.item(), rel=1e-4)
