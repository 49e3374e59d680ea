"""What a run is predicted to take, against the bytes of its tensors."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function

from acodm_cli.engine.device import DTYPES, Compute
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.loss import CausalLoss
from acodm_cli.engine.memory import StepPlan, estimate_memory
from acodm_cli.engine.models import build_model, model_config
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.settings import DEFAULT
from acodm_cli.mixing.baselines.static import StaticMixer, uniform_weights
from acodm_cli.mixing.mixer import Mixer
from acodm_cli.runs.settings import RunSettings
from tests.benchmarks import overhead
from tests.engine.rank_memory import MARK, begun, live_bytes

WAYS = (("ddp", "whole"), ("fsdp", "whole"), ("fsdp", "sharded"))


@pytest.mark.slow
def test_prediction_on_two_ranks() -> None:
    """With four micro-batches per rank. One launch, because starting takes longer than counting. On a busy machine, gloo's threads give
    their copies back late, so that what is counted of fsdp may be too much."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.rank_memory", json.dumps(WAYS)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said, _ = (rank.communicate()[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    found = dict(zip(WAYS, (json.loads(line) for line in said.splitlines() if line.startswith("{")), strict=True))
    ratios = {way: bytes_["predicted"] / bytes_["counted"] for way, bytes_ in found.items()}
    assert all(ratio < 1.15 for ratio in ratios.values()), ratios
    assert ratios["ddp", "whole"] > 0.85
    predicted = [found[way]["predicted"] for way in reversed(WAYS)]
    assert predicted == sorted(set(predicted))


@pytest.mark.slow
def test_prediction_of_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, and where it needs the whole logits: with exact gradients, and in a model that caps them, as Gemma 2. Logits are what is
    largest here. One profile, because another in the same process would take blocks of the first for its own."""
    monkeypatch.setattr(overhead, "VOCABULARY", 4000)
    config = transformers.Gemma2Config(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, final_logit_softcapping=30.0,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    settings = RunSettings(
        steps=100, batch=8, micro_batch=8, seq_len=64, lr=1e-3, validate_every=100, validation_sequences=1, device="cpu",
        alignment_layers="attention",
    )  # fmt: skip
    forms: dict[str, dict[str, Any]] = {
        "in pieces": {},
        "exact": {"alignment": "exact"},
        "capped": {"model": str(tmp_path)},
    }
    predicted = {}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        for form, changed in forms.items():
            for dtype in ("fp32", "bf16"):
                prior_K = uniform_weights(2)
                mixer: Mixer = AcOdmLearner(prior_K, DEFAULT, seed=0) if form == "exact" else StaticMixer(prior_K)
                gc.collect()
                with record_function(MARK):
                    run, steps = begun(replace(settings, dtype=dtype, **changed), Ranks(), mixer)
                gc.collect()
                for _ in range(2):
                    with record_function(MARK):
                        next(steps)
                predicted[form, dtype] = run.memory.tensors
                del run, steps, mixer
    found = live_bytes(profiled)
    for way, before, step, other in zip(predicted, found[::3], found[1::3], found[2::3], strict=True):
        counted = min(step[1], other[1]) - before[0]
        assert predicted[way] == pytest.approx(counted, rel=0.05), way


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiled twice
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_prediction_of_a_compiled_loss(dtype: str) -> None:
    """As on a GPU, but compiled for a CPU, and up to where the backward pass begins."""
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    batch, seq_len, vocabulary = 8, 64, 16384
    config = model_config("pythia-14m", vocabulary, seq_len)
    compute = Compute(torch.device("cuda", 0), DTYPES[dtype])
    predicted, uncompiled = (
        estimate_memory(config, StepPlan(batch, seq_len, compiled=compiled), compute) for compiled in (True, False)
    )
    assert abs(uncompiled.loss - predicted.loss) == 4 * batch * seq_len * vocabulary
    loss = CausalLoss(build_model(config, 0, torch.device("cpu")), "inductor")
    tokens_BU = torch.randint(vocabulary, (batch, seq_len + 1))
    torch._dynamo.reset()

    def begin() -> torch.Tensor:
        with torch.autocast("cpu", compute.dtype, enabled=dtype == "bf16"):
            return loss(tokens_BU[:, :-1], tokens_BU[:, 1:])[0]

    begin()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with record_function(MARK):
            total = begin()
        del total
    assert predicted.activations + predicted.loss + predicted.head == pytest.approx(live_bytes(profiled)[0][1], rel=0.1)
