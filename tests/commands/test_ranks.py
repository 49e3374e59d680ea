"""Two ranks on a CPU do what one process does, and continue each other's runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from acodm_cli.schedule.schedule import Schedule
from tests.command_line import acodm, start_acodm
from tests.commands.test_interruption import stop_at_step
from tests.runs.test_targeted import write_target

STEPS = 30


def run(*arguments: object) -> str:
    process = start_acodm(*arguments)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def run_alone(*arguments: object) -> None:
    outcome = acodm(*arguments)
    assert outcome.code == 0, outcome.stderr


@pytest.fixture(scope="module")
def alone(small: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_alone("proxy-train", "--steps", STEPS, "--save-model", folder / "model", "--out", folder / "a.parquet", *small)
    return folder


def assert_same_run(found: Path, expected: Path) -> None:
    """But for the order in which floating-point numbers were added up."""
    a, b = Schedule.read(found), Schedule.read(expected)
    assert np.array_equal(a.per_domain["samples"], b.per_domain["samples"])
    assert np.abs(a.weights_SK - b.weights_SK).max() < 1e-4
    assert np.nanmax(np.abs(a.per_domain["validation_loss"] - b.per_domain["validation_loss"])) < 1e-4
    assert np.abs(a.per_step["train_loss"] - b.per_step["train_loss"]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [["ddp"], ["fsdp"], ["fsdp", "--fsdp-accumulate", "sharded"]])
def test_two_ranks_equal_one_process(parallel: list[str], alone: Path, small: list[object], tmp_path: Path) -> None:
    out, model = tmp_path / "a.parquet", tmp_path / "model"
    how = ["--steps", STEPS, "--micro-batch", 2, "--save-model", model, "--nproc", 2, "--parallel", *parallel]
    said = run("proxy-train", *how, "--out", out, *small)
    assert len(re.findall("^step 30/30", said, re.MULTILINE)) == 1  # one rank speaks
    assert_same_run(out, alone / "a.parquet")
    expected, found = (load_file(folder / "model.safetensors") for folder in (alone / "model", model))
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() < 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_model_starts_anew_on_all_ranks(parallel: str, small: list[object], tmp_path: Path) -> None:
    how = ["--steps", 5, "--episodes", 2, *small]
    run_alone("proxy-train", "--out", tmp_path / "alone.parquet", *how)
    run("proxy-train", "--out", tmp_path / "a.parquet", "--nproc", 2, "--parallel", parallel, *how)
    a, b = (Schedule.read(tmp_path / name).info["episodes"] for name in ("a.parquet", "alone.parquet"))
    assert a["costs"] == pytest.approx(b["costs"], abs=1e-4)
    assert a["best"] == b["best"]


@pytest.fixture(scope="module")
def guided(small: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Path]:
    """A run with a target: its options, and its schedule in one process."""
    folder = tmp_path_factory.mktemp("guided")
    target = write_target(folder / "code.jsonl", "code")
    guide: list[object] = ["--target", target, "--guide-every", 2, "--guide-sequences", 3]
    drawn = ["--alignment-tokens", 64]  # fewer than a step has
    options = [*guide, *drawn, "--micro-batch", 2, "--steps", 12]
    run_alone("proxy-train", *options, "--out", folder / "alone.parquet", *small)
    return options, folder / "alone.parquet"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp", "checkpointing", "compiled"])
def test_guide_passes_are_those_of_one_process(
    how: str, guided: tuple[list[object], Path], small: list[object], tmp_path: Path
) -> None:
    """Three sequences of guides for two ranks, so that one has less to do."""
    options, alone = guided
    ways: dict[str, list[object]] = {
        "ddp": ["--nproc", 2],
        "fsdp": ["--nproc", 2, "--parallel", "fsdp"],
        "checkpointing": ["--activation-checkpointing"],
        "compiled": ["--compile", "on"],
    }
    start = run if "--nproc" in ways[how] else run_alone
    start("proxy-train", *options, "--out", tmp_path / "a.parquet", *ways[how], *small)
    assert_same_run(tmp_path / "a.parquet", alone)
    a, b = (Schedule.read(path) for path in (tmp_path / "a.parquet", alone))
    for name in ("target.code.loss", "target.code.guide_loss"):
        assert np.nanmax(np.abs(a.per_step[name] - b.per_step[name])) < 1e-3
    assert np.nanmax(np.abs(a.per_domain["reward"] - b.per_domain["reward"])) < 1e-2 * np.nanmax(b.per_domain["reward"])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_ranks_resumes_on_one_and_on_two(
    parallel: str, alone: Path, small: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "a.parquet"
    how = ["proxy-train", "--steps", STEPS, "--nproc", 2, "--parallel", parallel, *small]
    code, said = stop_at_step(12, signal.SIGTERM, *how, "--out", out)
    assert code == 143, said
    stopped = re.search(r"stopped at step (\d+) of 30", said)
    assert stopped is not None
    shutil.copytree(tmp_path / "a.run", tmp_path / "b.run")
    assert f"resumed at step {stopped[1]} of" in run("proxy-train", "--out", out, "--resume")
    assert f"resumed at step {stopped[1]} of" in run(
        "proxy-train", "--out", tmp_path / "b.parquet", "--resume", "--nproc", 2
    )
    for name in ("a", "b"):
        assert_same_run(tmp_path / f"{name}.parquet", alone / "a.parquet")


@pytest.mark.slow
def test_errors_of_ranks_are_one_line(small: list[object], tmp_path: Path) -> None:
    for options, code, message in (
        (["--batch", 7], 2, "--batch 7 cannot be shared by 2 ranks; give a multiple of 2"),
        (["--model", "pythia-160"], 2, "unknown model 'pythia-160'; did you mean pythia-160m?"),
        (["--out", tmp_path / "no" / "a.parquet"], 2, f"cannot write in {tmp_path / 'no'}"),
        (["--data", tmp_path / "no"], 2, f"--data {tmp_path / 'no'} does not exist"),
    ):
        process = start_acodm("proxy-train", "--out", tmp_path / "a.parquet", *small, "--nproc", 2, *options)
        _, said = process.communicate(timeout=120)
        errors = [line for line in said.splitlines() if line.strip()]
        assert process.returncode == code, said
        assert len(errors) == 1, said
        assert message in errors[0]
    assert not list(tmp_path.iterdir())


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == launcher:
                found.append(int(folder.name))
    return found


def write_start_up(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    """What every Python that is started from now on runs first: shorter waits for ranks that hang, and more."""
    waits = (
        "from acodm_cli.commands import launch\n"
        "from acodm_cli.engine import watch\n"
        "launch.HUNG_SECONDS, launch.GRACE_SECONDS = 2.0, 5.0\n"
        "watch._LISTEN_SECONDS, watch._ANSWER_SECONDS = 2.0, 4.0\n"
    )
    (folder / "sitecustomize.py").write_text(waits + more)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["second signal", "launcher killed"])
def test_a_rank_that_hangs_is_ended(
    how: str, small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_start_up(tmp_path, monkeypatch)
    process = start_acodm("proxy-train", "--steps", 4000, "--nproc", 2, "--out", tmp_path / "a.parquet", *small)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 1/"):
            break
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGSTOP)  # the other waits for it for ever
    if how == "second signal":
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert "did not end, and is killed" in said
        assert process.returncode != 0
    else:
        process.kill()
        os.kill(ranks[1], signal.SIGCONT)
        process.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_a_rank_that_does_not_answer_is_named(
    hung: int, small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_start_up(tmp_path, monkeypatch)
    how = ["proxy-train", "--steps", 4000, "--nproc", 2, "--rank-timeout", 0.05, "--out", tmp_path / "a.parquet"]
    process = start_acodm(*how, *small)
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("step 1/"))
    ranks = {rank_of(process_id): process_id for process_id in ranks_of(process.pid)}
    os.kill(ranks[hung], signal.SIGSTOP)
    started = time.monotonic()
    _, said = process.communicate(timeout=100)
    assert time.monotonic() - started < 60
    assert process.returncode == 1
    assert f"error: no step has ended for 0.05 minutes: rank {hung} does not answer" in said
    assert "continue with --resume" in said
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks.values())


@pytest.mark.slow
def test_a_rank_that_hangs_says_where(small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = (
        "import os, time\n"
        "from acodm_cli.corpus.sampler import Sampler\n"
        "draw, drawn = Sampler.draw, []\n"
        "def slow(self, weights_K):\n"
        "    drawn.append(1)\n"
        "    if len(drawn) == 6 and os.environ.get('RANK') == '1':\n"
        "        time.sleep(1000)\n"
        "    return draw(self, weights_K)\n"
        "Sampler.draw = slow\n"
    )
    write_start_up(tmp_path, monkeypatch, slow)
    how = ["proxy-train", "--steps", 4000, "--nproc", 2, "--rank-timeout", 0.05, "--out", tmp_path / "a.parquet"]
    process = start_acodm(*how, *small)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1
    assert re.search(r"rank 0 is in \w+ of engine/\w+\.py, line \d+ \(process \d+ on ", said), said
    assert "rank 1 is in _draw of engine/trainer.py" in said, said


def rank_of(process: int) -> int:
    """The RANK of a process."""
    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return int(next(value for value in environment if value.startswith(b"RANK="))[5:])
