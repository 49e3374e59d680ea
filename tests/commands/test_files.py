"""The files of a run: what is its own, and what its mixer reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acodm_cli.commands.files import RunFiles, input_digests
from acodm_cli.commands.run import _plan_memory
from acodm_cli.config import RunSettings
from acodm_cli.engine.device import Compute
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.memory import free_memory
from acodm_cli.engine.models import model_config
from acodm_cli.errors import UsageError
from acodm_cli.writing import partial_prefix


def test_only_its_own_left_overs_are_removed(tmp_path: Path) -> None:
    files, model = RunFiles(tmp_path / "a.parquet"), tmp_path / "env"
    own = [f"{partial_prefix(path)}1x2" for path in (files.out, model)]
    others = [".env.local", ".a.parquet.swp", ".a.parquet", ".envrc", "a.parquet"]
    for name in (*own, *others):
        (tmp_path / name).touch()
    files.remove_left_over(str(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_model_does_not_replace_the_folder_it_is_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", "..", str(tmp_path)):
        settings = RunSettings(command="proxy-train", model="pythia-14m", save_model=folder)
        with pytest.raises(UsageError, match="give a folder of its own"):
            RunFiles(Path("a.parquet")).check(settings, force=True)


def test_digests_follow_the_content(tmp_path: Path) -> None:
    reference, weights = tmp_path / "reference", tmp_path / "w.json"
    reference.mkdir()
    options = {"reference": str(reference), "file": str(weights), "step_size": "1"}
    settings = RunSettings(command="proxy-train", model="m", schedule="pile-natural", mixer_options=options)
    seen = []
    for content in ("1", "2"):
        (reference / "model.safetensors").write_text(content)
        weights.write_text(content)
        seen.append(input_digests(settings))
    assert list(seen[0]) == ["--schedule", "file", "reference"]
    assert [name for name in seen[0] if seen[0][name] != seen[1][name]] == ["file", "reference"]


def test_ranks_agree_on_the_micro_batch() -> None:
    """Free memory differs between them: under fsdp another number of forward passes would hang."""

    class WithAPoorOne(Ranks):
        def largest(self, value: int) -> int:
            return max(value, -free // 8)

    compute = Compute(torch.device("cpu"), torch.float32)
    free = free_memory(compute)
    settings = RunSettings(command="proxy-train", model="pythia-70m", batch=4096, seq_len=1024)
    config = model_config("pythia-70m", 256, 1024)
    alone, _ = _plan_memory(settings, config, compute, Ranks())
    together, _ = _plan_memory(settings, config, compute, WithAPoorOne())
    assert np.isclose(alone / together, 8, rtol=0.75)
    assert together < alone
