"""The fused loss equals the one through the model's logits, where it is used, and is not used where it would not. Compiled, it is
the same."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
import transformers
from torch import nn
from torch._dynamo.utils import counters

from acodm_cli.alignment.probe import select_layers
from acodm_cli.alignment.sketch import SketchProbe
from acodm_cli.engine import loss as loss_module
from acodm_cli.engine.loss import IGNORED, CausalLoss, token_losses
from acodm_cli.engine.models import build_model, model_config

CPU = torch.device("cpu")


def make_model(name: str, tied: bool = False) -> nn.Module:
    config = model_config(name, 256, 16)
    config.tie_word_embeddings = tied
    return build_model(config, seed=0, device=CPU)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens_BU = torch.randint(256, (7, 17), generator=torch.Generator().manual_seed(0))
    labels_BT = tokens_BU[:, 1:].clone()
    labels_BT[2, 5:] = IGNORED
    return tokens_BU[:, :-1], labels_BT


@pytest.mark.parametrize("rows", [1000, 16, 5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["pythia-14m", "llama-tiny"])
def test_losses_and_gradients_equal_those_of_the_logits(
    name: str, dtype: torch.dtype, tied: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, and in chunks and pieces that cut through sequences."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", {"cpu": 4 * 256 * rows})
    monkeypatch.setattr(loss_module, "CACHE_BYTES", 4 * 256 * max(1, rows // 3))
    inputs_BT, labels_BT = make_batch()
    plain, fused = make_model(name, tied), make_model(name, tied)
    fused_loss = CausalLoss(fused)
    assert fused_loss.plain_head
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected_BT = token_losses(plain, inputs_BT, labels_BT)
        total, losses_BT = fused_loss(inputs_BT, labels_BT, 0.25)
    (expected_BT.sum() * 0.25).backward()
    total.backward()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (losses_BT - expected_BT).abs().max() < tolerance
    assert (losses_BT[2, 5:] == 0).all()
    for expected, found in zip(plain.parameters(), fused.parameters(), strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        assert (found.grad - expected.grad).norm() <= tolerance * expected.grad.norm()


def test_an_outer_gradient_is_obeyed() -> None:
    once, twice = make_model("llama-tiny"), make_model("llama-tiny")
    CausalLoss(once)(*make_batch())[0].backward()
    (2 * CausalLoss(twice)(*make_batch())[0]).backward()
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.allclose(2 * a.grad, b.grad, rtol=1e-5)  # type: ignore[operator, arg-type]


def test_a_head_that_does_more_than_multiply_goes_through_the_model() -> None:
    """Gemma 2 caps its logits: the fused loss would be wrong."""
    config = transformers.Gemma2Config(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, final_logit_softcapping=2.0,
    )  # fmt: skip
    model = build_model(config, 0, CPU)
    loss = CausalLoss(model)
    assert not loss.plain_head
    inputs_BT, labels_BT = make_batch()
    assert torch.equal(loss(inputs_BT, labels_BT)[1], token_losses(model, inputs_BT, labels_BT))


def everything(
    backend: str | None, tokens_BU: torch.Tensor, dtype: torch.dtype, tokens: int | None, micro_batch: int
) -> dict[str, torch.Tensor]:
    """What a step and a validation compute."""
    model = make_model("llama-tiny", tied=True)
    loss, probe = CausalLoss(model, backend), SketchProbe(select_layers(model, "all"), 2, True, 0, 16, 2, tokens)
    labels_BT = tokens_BU[:, 1:].clone()
    labels_BT[0, 5:] = IGNORED
    probe.start(3, torch.arange(len(tokens_BU)) % 2, (labels_BT != IGNORED).sum(1))
    losses = []
    for start in range(0, len(tokens_BU), micro_batch):
        rows = slice(start, start + micro_batch)
        probe.begin(rows, labels_BT.shape[1])
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            total, losses_BT = loss(tokens_BU[rows, :-1], labels_BT[rows], 0.01, probe)
        total.backward()
        losses.append(losses_BT)
    gradients = probe.finish()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        validation_BT = loss(tokens_BU[:, :-1], labels_BT)[1]
    found = {
        "losses": torch.cat(losses),
        "validation": validation_BT,
        "gram": gradients.gram_KK,
        "self": gradients.self_K,
    }
    return found | {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("backend", "dtype", "tokens"),
    [
        ("aot_eager", torch.float32, 28),
        ("eager", torch.bfloat16, None),
        pytest.param("inductor", torch.float32, 28, marks=pytest.mark.slow),
    ],
)
def test_compiled_is_the_same_in_one_graph_for_ragged_batches(
    backend: str, dtype: torch.dtype, tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of other lengths each time, with a sketch of drawn tokens and of all: the graph of training, and that of validation."""
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", {"cpu": 4 * 256 * 40})
    torch._dynamo.reset()
    counters.clear()
    for batch, length, micro_batch in ((7, 16, 3), (4, 21, 4), (5, 33, 1)):
        tokens_BU = torch.randint(256, (batch, length + 1), generator=torch.Generator().manual_seed(batch))
        plain, compiled = (everything(b, tokens_BU, dtype, tokens, micro_batch) for b in (None, backend))
        assert plain.keys() == compiled.keys()
        sizes = {name: expected.nan_to_num().norm() for name, expected in plain.items()}
        errors = {name: (compiled[name] - expected).nan_to_num().norm() for name, expected in plain.items()}
        losses = ("losses", "validation", "gram", "self")
        for name, error in errors.items():
            # Generated code rounds in another order, and in a layer whose gradient nearly cancels that is more of it.
            layer = 5e-6 if backend == "inductor" else 1e-6
            assert error <= (1e-6 if name in losses else layer) * sizes[name], name
        of_gradient = [name for name in plain if name not in losses]
        whole = [math.hypot(*(float(each[name]) for name in of_gradient)) for each in (errors, sizes)]
        assert whole[0] <= 1e-6 * whole[1]
    assert counters["stats"]["unique_graphs"] == 2
