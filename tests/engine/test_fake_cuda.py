"""What a GPU would refuse or wait for, found without one: training on a fake CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.device import Compute
from acodm_cli.engine.host_copy import HostCopy
from acodm_cli.engine.loss import CausalLoss
from acodm_cli.engine.models import model_config
from acodm_cli.engine.trainer import Trainer
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.policy import FrozenPolicy
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.baselines.static import StaticMixer, uniform_weights
from acodm_cli.mixing.mixer import Mixer
from acodm_cli.runs.build import ALONE, build_run
from acodm_cli.runs.memory_plan import plan_memory
from acodm_cli.runs.run import Run
from acodm_cli.runs.settings import RunSettings
from tests.command_line import acodm
from tests.fake_cuda import CUDA, HOST, FakeCuda, device_of

EAGER = replace(DEFAULT, warmup_least=2, warmup_share=0.0)  # the agent learns from the third step on
# Three micro-batches, of which the last is smaller; a validation of two batches after the first and the fourth step.
SETTINGS = RunSettings(
    steps=5, batch=8, micro_batch=3, seq_len=16, lr=1e-3, validate_every=4, validation_sequences=2, device="cuda", dtype="fp32", compile="off"
)  # fmt: skip
HOW: dict[str, dict[str, Any]] = {
    "static": {},
    "policy": {},
    "sketch": {},
    "exact": {"alignment": "exact"},
    "checkpointing": {"activation_checkpointing": True},
    "bf16": {"dtype": "bf16"},
    "llama": {"model": "llama-tiny"},
    "guided": {"guide": "domains", "guide_every": 2, "guide_sequences": 6},
}


@pytest.fixture(scope="module")
def models(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with the configurations of models that have two layers, by the preset's name."""
    folders = {}
    for preset in ("pythia-14m", "llama-tiny"):
        config = model_config(preset, corpus.tokenizer.padded_vocab_size, 16)
        config.num_hidden_layers = 2
        folders[preset] = str(tmp_path_factory.mktemp(preset))
        config.save_pretrained(folders[preset])
    return folders


def built(corpus: Corpus, models: dict[str, str], how: str, **changed: Any) -> Run:
    settings = replace(SETTINGS, **HOW[how], **changed)
    learner = AcOdmLearner(uniform_weights(4), EAGER, 0)
    mixer: Mixer = learner
    if how == "static":
        mixer = StaticMixer(np.array([0.4, 0.3, 0.2, 0.1]))
    elif how == "policy":
        mixer = FrozenPolicy(learner.agent.actor, learner.agent.normalizer, EAGER)
    return build_run(
        replace(settings, model=models[settings.model]), corpus=corpus, mixer=mixer, warn=lambda message: None
    )


@pytest.mark.parametrize("how", HOW)
def test_the_host_waits_once_per_step(how: str, corpus: Corpus, models: dict[str, str]) -> None:
    """And once per validation, whatever the number of micro-batches. Nothing lies on the wrong side."""
    with FakeCuda() as gpu:
        trainer = built(corpus, models, how).trainer
        assert all(parameter.is_cuda for parameter in trainer.model.parameters())
        steps = trainer.steps()
        for step in range(1, 5):
            gpu.clear()
            event = next(steps)
            validations = int(event.validation is not None)
            assert validations == (step in (1, 4))
            assert gpu.waits.total() == 1 + validations, gpu.waits
            assert all("on_host" in line or "_sums" in line for line in gpu.waits)
            assert not [line for line in gpu.pageable if "probe.py" not in line]  # slots: too few bytes to be staged
        assert gpu.kernels["_fused_adamw_"] == 2  # of matrices, of the rest
        gpu.clear()
        state = HostCopy(CUDA, ALONE).take(trainer.state_dict(), of_host=True)
        assert gpu.waits.total() == 1, gpu.waits
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
        assert len(tensors) > 50
        assert {device_of(tensor) for tensor in tensors} == {HOST}
        trainer.load_state_dict(state)
        assert {device_of(tensor) for tensor in trainer.model.parameters()} == {CUDA}
        assert np.isfinite(next(steps).train_loss)
        assert not gpu.mismatches


@pytest.mark.parametrize("mode", ["policy", "replay"])
def test_apply(mode: str, proxy: Path, small: list[object], models: dict[str, str], tmp_path: Path) -> None:
    """The whole command, with checkpoints. The model that it saves knows nothing of how it was trained."""
    model = ["--model", models["pythia-14m"], "--save-model", tmp_path / "model"]
    options = [*model, *small, "--device", "cuda", "--compile", "off", "--steps", 3, "--checkpoint-every", 2]
    with FakeCuda() as gpu:
        outcome = acodm("apply", "--schedule", proxy, "--mode", mode, "--out", tmp_path / "out.parquet", *options)
        assert outcome.code == 0, outcome.stderr
        assert not gpu.mismatches
    assert "NVIDIA H100 80GB HBM3, bf16" in outcome.stderr
    assert "acodm" not in (tmp_path / "model" / "config.json").read_text()


def leave_domains_on_the_host(self: Trainer, tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 1 else self.compute.sent(tensor)


def look_at_the_loss(self: CausalLoss, *args: Any, forward: Callable[..., Any] = CausalLoss.forward) -> Any:
    total, losses_BT = forward(self, *args)
    assert total.item() > 0
    return total, losses_BT


def take_what_counts(self: CausalLoss, *args: Any, forward: Callable[..., Any] = CausalLoss.forward) -> Any:
    total, losses_BT = forward(self, *args)
    return total + 0 * losses_BT[losses_BT > 0].sum(), losses_BT


def send_from_anywhere(self: Compute, tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Trainer, "_to_device", leave_domains_on_the_host),
        (CausalLoss, "forward", look_at_the_loss),
        (CausalLoss, "forward", take_what_counts),
        (Compute, "pinned", send_from_anywhere),
    ],
)
def test_faults_are_found(
    owner: type, name: str, fault: Callable[..., Any], corpus: Corpus, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The same checks as above see what is put in: they would not be of use if they saw nothing."""
    monkeypatch.setattr(owner, name, fault)
    with FakeCuda() as gpu:
        steps = built(corpus, models, "static").trainer.steps()
        if fault is leave_domains_on_the_host:
            with pytest.raises(RuntimeError, match=r"same device.*index_add_"):
                next(steps)
            assert "trainer.py" in gpu.mismatches[0]
            return
        next(steps)
        gpu.clear()
        next(steps)
    # Of three micro-batches.
    expected = {look_at_the_loss: (4, 0), take_what_counts: (4, 0), send_from_anywhere: (1, 6)}
    assert (gpu.waits.total(), gpu.pageable.total()) == expected[fault]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "graphs"), [("static", 2), ("checkpointing", 4), ("guided", 3)])
def test_few_graphs(
    how: str, graphs: int, corpus: Corpus, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the last micro-batch lacks: one with gradients (watched or not), one without. Counted as they are traced, on the CPU."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled(block, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = built(corpus, models, how, device="cpu", compile="on")
    assert [event.step for event in run.trainer.steps()] == [1, 2, 3, 4, 5]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_gpu_takes_what_fits(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """More logits than a CPU is given; the loss makes them in parts."""
    settings = replace(SETTINGS, model="pythia-14m", batch=64, micro_batch=None, seq_len=1024)
    config = model_config("pythia-14m", 50304, 1024)
    free = 10**12
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    gpu = Compute(CUDA, torch.bfloat16)
    assert plan_memory(settings, config, gpu, ALONE)[0] == 64
    free = plan_memory(replace(settings, micro_batch=20), config, gpu, ALONE)[1].total
    assert plan_memory(settings, config, gpu, ALONE)[0] == 16
