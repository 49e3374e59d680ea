"""The files of a run: what is its own, and what its mixer reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acodm_cli.engine.device import Compute
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.models import model_config
from acodm_cli.errors import UsageError
from acodm_cli.mixing.baselines.doremi import DoremiMixer, DoremiSettings
from acodm_cli.mixing.baselines.fixed import FixedMixer
from acodm_cli.runs import memory_plan
from acodm_cli.runs.build import input_digests
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.memory_plan import plan_memory
from acodm_cli.runs.settings import RunSettings
from acodm_cli.writing import partial_prefix


def test_only_its_own_left_overs_are_removed(tmp_path: Path) -> None:
    files, model = RunFolder(tmp_path / "a.parquet"), tmp_path / "env"
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
        settings = RunSettings(save_model=folder)
        with pytest.raises(UsageError, match="give a folder of its own"):
            RunFolder(Path("a.parquet")).check(settings, force=True)


def test_digests_follow_the_content(tmp_path: Path) -> None:
    reference, weights = tmp_path / "reference", tmp_path / "w.json"
    reference.mkdir()
    third_K = np.full(3, 1 / 3)
    for mixer, options in (
        (DoremiMixer(third_K, DoremiSettings(str(reference))), {"reference": str(reference), "step_size": "1"}),
        (FixedMixer(third_K), {"file": str(weights)}),
    ):
        settings = RunSettings(schedule="pile-natural", mixer_options=options)
        seen = []
        for content in ("1", "2"):
            (reference / "model.safetensors").write_text(content)
            weights.write_text(content)
            seen.append(input_digests(settings, mixer))
        assert list(seen[0]) == ["--schedule", next(iter(options))]
        assert [name for name in seen[0] if seen[0][name] != seen[1][name]] == [next(iter(options))]


def test_what_others_put_into_the_folder_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a.parquet")
    with folder.locked():
        folder.begin(RunSettings())
        folder.save_checkpoint(5, {}, 1)
        (folder.path / "train.log").write_text("mine")
        folder.begin(RunSettings(seed=1))
        assert sorted(path.name for path in folder.path.iterdir()) == ["lock", "run.json", "train.log"]
        folder.remove()
    assert [path.name for path in folder.path.iterdir()] == ["train.log"]


def test_runs_of_another_version_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a.parquet")
    folder.path.mkdir()
    folder.settings_file.write_text('{"command": "proxy-train", "model": "pythia-14m", "steps": 300}')
    with pytest.raises(UsageError, match="was begun by another version of acodm; finish it with that version"):
        folder.resumable_settings()


def test_ranks_agree_on_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory differs between them: under fsdp another number of forward passes would hang."""
    free = 16 << 30
    monkeypatch.setattr(memory_plan, "free_memory", lambda compute: free)

    class WithAPoorOne(Ranks):
        def largest(self, value: int) -> int:
            return max(value, -free // 8)

    compute = Compute(torch.device("cpu"), torch.float32)
    settings = RunSettings(model="pythia-70m", batch=4096, seq_len=1024)
    config = model_config("pythia-70m", 256, 1024)
    alone, _ = plan_memory(settings, config, compute, Ranks())
    together, _ = plan_memory(settings, config, compute, WithAPoorOne())
    assert np.isclose(alone / together, 8, rtol=0.75)
    assert together < alone
