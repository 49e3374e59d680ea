"""A run that is stopped continues to exactly where it would have arrived."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from acodm_cli.schedule.schedule import Schedule
from tests.chaos import chaos
from tests.command_line import acodm, start_acodm


def stop_at_step(step: int, number: signal.Signals, *arguments: object) -> tuple[int, str]:
    """Start a run, send the signal once the step has been reported; its exit code and what it said."""
    process = start_acodm(*arguments)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        match = re.match(r"step (\d+)/", line)
        if match and int(match[1]) >= step:
            process.send_signal(number)
            break
    said += process.stderr.read()
    return process.wait(timeout=60), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "options"),
    [
        (signal.SIGTERM, 143, []),
        (signal.SIGINT, 130, []),
        # The sketch looks at a quarter of the tokens, drawn anew in each step.
        (signal.SIGUSR1, 138, ["--alignment-tokens", 64, "--micro-batch", 3]),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(
    number: signal.Signals, code: int, options: list[object], small: list[object], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    how = ["proxy-train", "--steps", 60, *options, *small]
    assert acodm(*how, "--out", whole).code == 0

    exit_code, said = stop_at_step(30, number, *how, "--out", parts)
    assert exit_code == code, said
    stopped = re.search(r"stopped at step (\d+) of 60, state saved; continue with: (.*)", said)
    assert stopped is not None, said
    assert 30 <= int(stopped[1]) < 60
    assert stopped[2].split() == ["acodm", "proxy-train", "--out", str(parts), "--resume"]
    assert not parts.exists()

    resumed = acodm(*stopped[2].split()[1:])
    assert resumed.code == 0, resumed.stderr
    assert f"resumed at step {stopped[1]} of 60" in resumed.stderr
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.parquet", "whole.parquet"]

    again = acodm("proxy-train", "--out", parts, "--resume")
    assert (again.code, again.stderr) == (0, f"{parts} is complete; nothing to resume\n")


@pytest.mark.slow
def test_apply_resumes_with_its_schedule(proxy: Path, small: list[object], tmp_path: Path) -> None:
    how = ["apply", "--schedule", proxy, "--model", "pythia-14m", "--steps", 60, *small]
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    assert acodm(*how, "--out", whole).code == 0
    assert stop_at_step(21, signal.SIGTERM, *how, "--out", parts)[0] == 143
    assert acodm("apply", "--out", parts, "--resume").code == 0
    assert parts.read_bytes() == whole.read_bytes()
    models = [(tmp_path / f"{name}.model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert models[0] == models[1]


@pytest.mark.slow
def test_resuming_from_another_folder_and_with_another_corpus(
    data: Path, tokenizer_file: Path, cache: Path, proxy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places are stored as absolute paths, and a change of the corpus is named by its domain."""
    shutil.copytree(data, tmp_path / "here" / "corpus")
    shutil.copy(tokenizer_file, tmp_path / "here" / "tokenizer.json")
    shutil.copy(proxy, tmp_path / "here" / "proxy.parquet")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    corpus = ["--data", "corpus", "--tokenizer", "tokenizer.json"]
    run = ["--seq-len", 32, "--batch", 8, "--validation-sequences", 4, "--device", "cpu", "--cache-dir", cache]
    command = ["apply", "--schedule", "proxy.parquet", "--model", "pythia-14m", "--steps", 60, "--checkpoint-every", 5]
    assert stop_at_step(6, signal.SIGTERM, *command, *corpus, *run, "--out", "x.parquet")[0] == 143
    stored = json.loads((tmp_path / "here" / "x.run" / "run.json").read_text())["settings"]
    assert stored["data"] == str(tmp_path / "here" / "corpus")
    monkeypatch.chdir(tmp_path / "there")
    out = tmp_path / "here" / "x.parquet"
    path = tmp_path / "here" / "corpus" / "code" / "train.jsonl.gz"
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(whole) + b'{"text": "one more"}\n'))
    changed = acodm("apply", "--out", out, "--resume")
    assert changed.code == 2
    assert "domain code of the corpus has changed since the run of" in changed.stderr
    path.write_bytes(whole)
    elsewhere = acodm("apply", "--out", out, "--resume", "--data", tmp_path / "there")
    assert "has nothing to read in it" in elsewhere.stderr
    monkeypatch.chdir(tmp_path / "here")
    resumed = acodm("apply", "--out", "x.parquet", "--resume", "--data", "corpus")
    assert resumed.code == 0, resumed.stderr


def test_killed_run_resumes_from_its_last_checkpoint(small: list[object], tmp_path: Path) -> None:
    """SIGKILL: nothing is saved at that moment, what was saved before is whole."""
    out = tmp_path / "a.parquet"
    code, said = stop_at_step(
        30, signal.SIGKILL, "proxy-train", "--steps", 60, "--checkpoint-every", 10, "--out", out, *small
    )
    assert code == -signal.SIGKILL
    resumed = acodm("proxy-train", "--out", out, "--resume")
    assert resumed.code == 0, said + resumed.stderr
    step = re.search(r"resumed at step (\d+)", resumed.stderr)
    assert step is not None
    assert int(step[1]) % 10 == 0
    assert int(step[1]) >= 20


@pytest.mark.slow
def test_unfinished_run_is_not_overwritten(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    process = start_acodm("proxy-train", "--steps", 5000, "--checkpoint-every", 5, "--out", out, *small)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("a.run/step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    refused = acodm("proxy-train", "--steps", 5000, "--out", out, *small)
    assert refused.code == 2
    assert "--resume" in refused.stderr
    other = acodm("proxy-train", "--out", out, "--resume", "--seed", 7)
    assert other.code == 2
    assert "--seed 7 differs" in other.stderr
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    replacing = acodm("proxy-train", "--out", out, "--resume", "--save-model", tmp_path / "thesis")
    assert replacing.code == 2
    assert "thesis.tex" in replacing.stderr
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "mine"
    assert "acodm proxy-train" in acodm("apply", "--out", out, "--resume").stderr


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    process = start_acodm("proxy-train", "--steps", 5000, "--out", out, *small)
    assert process.stderr is not None
    try:
        next(line for line in process.stderr if line.startswith("step 1/"))
        before = {path.name for path in (tmp_path / "a.run").iterdir()}
        for arguments in (["--steps", 3, *small], ["--steps", 3, "--force", *small], ["--resume"]):
            refused = acodm("proxy-train", "--out", out, *arguments)
            assert refused.code == 2
            assert f"another acodm is running with --out {out}" in refused.stderr
        assert {path.name for path in (tmp_path / "a.run").iterdir()} >= before
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    # The dead process holds nothing.
    assert acodm("proxy-train", "--out", out, "--steps", 3, "--force", *small).code == 0


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(small: list[object], tmp_path: Path) -> None:
    """A flipped byte in the newest: the run goes on from the one before, and ends as if nothing had happened."""
    whole, out = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    how = ["proxy-train", "--steps", 60, "--checkpoint-every", 4, *small]
    assert acodm(*how, "--out", whole).code == 0
    assert stop_at_step(21, signal.SIGKILL, *how, "--out", out)[0] == -signal.SIGKILL
    older, newest = sorted((tmp_path / "a.run").glob("step-*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    resumed = acodm("proxy-train", "--out", out, "--resume")
    assert resumed.code == 0, resumed.stderr
    assert f"{newest} is damaged (its content is not what was written); trying the one before" in resumed.stderr
    assert f"resumed at step {int(older.name.split('-')[1])} of 60" in resumed.stderr
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_without_an_intact_checkpoint_nothing_is_lost(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    how = ["proxy-train", "--steps", 60, "--checkpoint-every", 20, *small]
    assert stop_at_step(24, signal.SIGKILL, *how, "--out", out)[0] == -signal.SIGKILL
    for path in (tmp_path / "a.run").glob("step-*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    failed = acodm("proxy-train", "--out", out, "--resume")
    assert failed.code == 1
    assert "can be read; start over with --force" in failed.stderr
    assert list((tmp_path / "a.run").glob("step-*.pt"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(small: list[object], tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    whole, out = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    how = ["proxy-train", "--steps", 60, "--checkpoint-every", 5, *small]
    assert acodm(*how, "--out", whole).code == 0
    assert stop_at_step(15, signal.SIGKILL, *how, "--out", out)[0] == -signal.SIGKILL
    before = {path: path.read_bytes() for path in (tmp_path / "a.run").glob("step-*.pt")}
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)); "
        "from acodm_cli.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "proxy-train", "--out", str(out), "--resume"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert f"cannot write a checkpoint in {tmp_path / 'a.run'}: " in failed.stderr.splitlines()[-1]
    assert failed.stderr.splitlines()[-1].endswith("; earlier ones are kept: make room and continue with --resume")
    assert {path: path.read_bytes() for path in (tmp_path / "a.run").iterdir() if path.suffix == ".pt"} == before
    assert not list((tmp_path / "a.run").glob(".*"))
    assert acodm("proxy-train", "--out", out, "--resume").code == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_changed_corpus_is_not_resumed(data: Path, small: list[object], tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "corpus")
    options = [tmp_path / "corpus" if option == data else option for option in small]
    out = tmp_path / "a.parquet"
    how = ["proxy-train", "--steps", 60, "--checkpoint-every", 5, *options]
    assert stop_at_step(15, signal.SIGKILL, *how, "--out", out)[0] == -signal.SIGKILL
    with (tmp_path / "corpus" / "arithmetic" / "train.jsonl").open("a") as file:
        file.write('{"text": "1 + 1 = 2"}\n')
    refused = acodm("proxy-train", "--out", out, "--resume")
    assert refused.code == 2
    assert "the corpus has changed since the run" in refused.stderr
    assert list((tmp_path / "a.run").glob("step-*.pt"))


@pytest.mark.slow
def test_a_changed_schedule_is_not_resumed(proxy: Path, small: list[object], tmp_path: Path) -> None:
    schedule, out = tmp_path / "s.parquet", tmp_path / "a.parquet"
    shutil.copy(proxy, schedule)
    how = ["apply", "--schedule", schedule, "--model", "pythia-14m", "--steps", 60, "--checkpoint-every", 5, *small]
    assert stop_at_step(15, signal.SIGKILL, *how, "--out", out)[0] == -signal.SIGKILL
    changed = Schedule.read(schedule)
    replace(changed, policy=None).write(schedule)
    gone = acodm("apply", "--out", out, "--resume")
    assert (gone.code, "holds no policy any more" in gone.stderr) == (3, True)
    replace(changed, info=changed.info | {"note": "another"}).write(schedule)
    refused = acodm("apply", "--out", out, "--resume")
    assert refused.code == 2
    assert "what --schedule names has changed since the run" in refused.stderr
    shutil.copy(proxy, schedule)
    assert acodm("apply", "--out", out, "--resume").code == 0


@pytest.mark.slow
def test_keeps_as_many_checkpoints_as_asked(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    how = ["proxy-train", "--steps", 60, "--checkpoint-every", 2, "--keep-checkpoints", 4, *small]
    assert stop_at_step(30, signal.SIGKILL, *how, "--out", out)[0] == -signal.SIGKILL
    assert len(list((tmp_path / "a.run").glob("step-*.pt"))) in (4, 5)  # the kill may come before the oldest goes


@pytest.mark.slow
@pytest.mark.parametrize("command", ["proxy-train", "apply"])
def test_chaos(command: str, tmp_path: Path) -> None:
    """A short run of the script that kills a run at random moments."""
    assert chaos(command, kills=3, steps=40, seed=1, folder=tmp_path).total() >= 2


@pytest.mark.slow
def test_chaos_of_ranks(tmp_path: Path) -> None:
    assert chaos("proxy-train", kills=2, steps=30, seed=2, folder=tmp_path, nproc=2).total() >= 1


def test_nothing_to_resume(tmp_path: Path) -> None:
    outcome = acodm("proxy-train", "--out", tmp_path / "a.parquet", "--resume")
    assert outcome.code == 2
    assert "nothing to resume" in outcome.stderr
