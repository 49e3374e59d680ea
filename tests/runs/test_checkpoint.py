from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.host_copy import HostCopy
from acodm_cli.errors import AcodmError
from acodm_cli.runs.build import build_run
from acodm_cli.runs.checkpoint_writer import CheckpointWriter
from acodm_cli.runs.folder import RunFolder, is_intact, load_checkpoint
from acodm_cli.runs.settings import RunSettings


@pytest.mark.parametrize(("keep", "left"), [(1, [70]), (2, [60, 70]), (4, [50, 60, 70])])
def test_what_was_passed_over_is_not_kept_in_place_of_what_is_whole(keep: int, left: list[int], tmp_path: Path) -> None:
    """The newest is damaged, the run goes on from the one before, and saves at a step before the damaged one's."""
    folder = RunFolder(tmp_path / "a.parquet")
    for step in (50, 60, 80):
        damaged = folder.save_checkpoint(step, {}, 3)
    damaged.write_bytes(b"damaged")
    folder.save_checkpoint(70, {}, keep)
    found = folder.checkpoints()
    assert [int(path.name.split("-")[1]) for path in found] == left
    assert all(map(is_intact, found))


def weights_and_moments(state: dict[str, Any]) -> list[Any]:
    return [state["model"], state["optimizer"]["state"]]


def test_a_checkpoint_holds_the_step_that_it_was_taken_at(corpus: Corpus, tmp_path: Path) -> None:
    """It is written while the next steps change every weight."""
    settings = RunSettings(
        mixer="uniform", steps=6, batch=4, seq_len=16, validation_sequences=1, device="cpu", checkpoint_every=2
    )
    run, folder = build_run(settings, corpus=corpus, warn=lambda _: None), RunFolder(tmp_path / "a.parquet")
    assert run.saves_in_background
    assert run.memory.checkpoint == 12 * run.parameters
    with folder.locked():
        run.keep_in(folder)
        expected = {}
        for event in run.steps():
            if event.step % 2 == 0:
                expected[event.step] = copy.deepcopy(weights_and_moments(run.trainer.state_dict()))
        found = {int(path.name.split("-")[1]): path for path in folder.checkpoints()}
        assert sorted(found) == [4, 6]
        for step, path in found.items():
            assert is_intact(path)
            state = load_checkpoint(path, mapped=False)["trainer"]
            torch.testing.assert_close(weights_and_moments(state), expected[step], rtol=0, atol=0)
        folder.remove()


def test_a_copy_stays_as_it_is_and_its_memory_is_used_again() -> None:
    weight_PF, moment_PF = torch.zeros(3, 2), torch.zeros(3, 2)
    state = {"step": 1, "tied": (weight_PF, weight_PF), "moment": [moment_PF.T]}
    host = HostCopy(torch.device("cpu"), Ranks())
    first = host.take(state, of_host=True)
    weight_PF += 1
    assert first["tied"][0].eq(0).all()
    assert first["tied"][0] is first["tied"][1]
    assert host.take(state, of_host=True)["tied"][0] is first["tied"][0]
    assert first["tied"][0].eq(1).all()
    assert first["moment"][0].shape == (2, 3)
    assert host.take(state, of_host=False)["tied"][0] is weight_PF
    state["moment"] = [torch.ones(5)]  # such as a replay buffer, which has grown
    assert host.take(state, of_host=True)["moment"][0].tolist() == [1] * 5


def test_what_the_thread_meets_comes_to_who_waits(tmp_path: Path) -> None:
    folder, given_up = RunFolder(tmp_path / "a.parquet"), threading.Event()
    with CheckpointWriter(folder, 0, given_up.is_set) as writer:
        writer.wait()
        writer.begin(5, {"weight": torch.ones(4)}, 2)
        writer.wait()
        assert writer.saved == 5
        before = {path: path.read_bytes() for path in folder.path.iterdir()}
        given_up.set()
        writer.begin(6, {"weight": torch.zeros(4)}, 2)
        with pytest.raises(AcodmError, match=r"cannot write a checkpoint in .*; earlier ones are kept"):
            writer.wait()
        assert writer.failed
        assert writer.saved == 5
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_the_end_waits_for_what_is_being_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a.parquet")
    with CheckpointWriter(folder, 0, lambda: False) as writer:
        writer.begin(5, {"weight": torch.ones(1 << 20)}, 2)
    assert [is_intact(path) for path in folder.path.iterdir()] == [True]
