"""What happens to runs in the world: other file systems, launchers, logs that end, runs that move, and mistakes."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from acodm_cli.corpus.preflight import DomainUse
from acodm_cli.display.progress import TrainingDisplay
from acodm_cli.display.style import cut
from acodm_cli.display.summary import print_preflight
from acodm_cli.runs.folder import RunFolder
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.writing import why_not_written
from tests.command_line import acodm, start_acodm


def test_a_file_system_without_locks(small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", *small)
    assert outcome.code == 0, outcome.stderr
    assert "cannot be locked (Function not implemented); see to it that no other run" in outcome.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT are missing"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x', but RANK, WORLD_SIZE"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "ranks count from 0",
        ),
    ],
)
def test_environments_of_launchers(
    environment: dict[str, str], message: str, small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", *small)
    assert outcome.code == 2
    assert message in outcome.stderr
    shown = acodm("inspect", tmp_path / "none.parquet")
    assert shown.code == 3
    assert "none.parquet" in shown.stderr


def test_an_empty_world_size_is_one_process(
    small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")
    assert acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", *small).code == 0


@pytest.mark.slow
def test_a_log_that_nobody_reads_does_not_stop_a_run(small: list[object], tmp_path: Path) -> None:
    process = start_acodm("proxy-train", "--steps", 40, "--out", tmp_path / "a.parquet", *small)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 10/"):
            break
    process.stderr.close()
    process.stderr = None
    process.communicate()
    assert process.returncode == 0
    assert len(Schedule.load(tmp_path / "a.parquet")) == 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGINT])
def test_signals_save_and_say_so(number: signal.Signals, small: list[object], tmp_path: Path) -> None:
    process = start_acodm("proxy-train", "--steps", 4000, "--out", tmp_path / "a.parquet", *small)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("step 1/"):
            process.send_signal(number)
    process.communicate()
    assert process.returncode == 128 + number
    assert f"{number.name}: stopping after this step; again to stop now and lose" in said
    assert said.splitlines()[-1].startswith("stopped at step "), said
    assert len(list((tmp_path / "a.run").glob("step-*.pt"))) == 1


def stopped(small: list[object], out: Path, *more: object) -> None:
    process = start_acodm("proxy-train", "--steps", 3000, "--out", out, *small, *more)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143


@pytest.mark.slow
def test_a_run_whose_corpus_has_moved(data: Path, small: list[object], tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "old")
    stopped(["--data", tmp_path / "old", *small[2:]], tmp_path / "a.parquet")
    (tmp_path / "old").rename(tmp_path / "new")
    gone = acodm("proxy-train", "--resume", "--out", tmp_path / "a.parquet")
    assert gone.code == 2
    assert "does not exist" in gone.stderr
    (tmp_path / "new" / "code").rename(tmp_path / "new" / "cod")
    other = acodm("proxy-train", "--resume", "--out", tmp_path / "a.parquet", "--data", tmp_path / "new")
    assert other.code == 2
    assert "domain code of the corpus has changed" in other.stderr
    (tmp_path / "new" / "cod").rename(tmp_path / "new" / "code")
    number = json.loads((tmp_path / "a.run" / "run.json").read_text())["settings"]["steps"]
    assert number == 3000


@pytest.mark.slow
def test_settings_that_are_lost_or_changed(small: list[object], tmp_path: Path) -> None:
    out, file = tmp_path / "a.parquet", tmp_path / "a.run" / "run.json"
    stopped(small, out)
    content = file.read_text()
    file.write_text(content.replace('"seed": 0', '"seed": 1'))
    changed = acodm("proxy-train", "--resume", "--out", out)
    assert changed.code == 2
    assert "run.json was changed: seed is 1, the run's checkpoints have 0" in changed.stderr
    file.unlink()
    failed = acodm("proxy-train", "--resume", "--out", out, "--data", tmp_path / "none")
    assert failed.code == 2
    assert list((tmp_path / "a.run").glob("step-*.pt")), "nothing is removed by a failure"
    process = start_acodm("proxy-train", "--resume", "--out", out)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("step ") and "resumed" in said and said.count("\nstep ") == 1:
            process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert "resumed at step" in said
    assert json.loads(file.read_text()) == json.loads(content)


def test_a_finished_run_is_not_made_longer(small: list[object], tmp_path: Path) -> None:
    command = ["proxy-train", "--out", tmp_path / "a.parquet", *small]
    assert acodm(*command, "--steps", 2).code == 0
    outcome = acodm(*command, "--resume", "--steps", 4)
    assert outcome.code == 2
    assert "is complete with 2 steps, and a finished run cannot be made longer" in outcome.stderr
    assert acodm(*command, "--resume", "--steps", 2).code == 0


def test_a_full_disk_at_the_last_write(small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.parquet"

    def full(schedule: Schedule, path: Path, durable: bool = True) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patched:
        patched.setattr(Schedule, "write", full)
        outcome = acodm("proxy-train", "--steps", 2, "--out", out, *small)
    assert outcome.code == 1
    assert "Disk quota exceeded; make room and continue with --resume" in outcome.stderr
    assert acodm("proxy-train", "--resume", "--out", out).code == 0


def test_a_disk_without_room_is_noticed_before_training(
    small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, usage = tmp_path / "a.parquet", shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda place: usage._replace(free=20_000_000))
        outcome = acodm("proxy-train", "--steps", 2, "--out", out, "--save-model", tmp_path / "model", *small)
    assert outcome.code == 4
    # weights of 5.3 MB: three checkpoints with two moments each, and a model
    assert outcome.stderr.splitlines()[-1] == (
        f"error: this run needs about 53 MB of disk in {tmp_path}, and 20 MB are free; make room, or choose another place with --out"
    )
    assert not list(tmp_path.iterdir())


def test_what_a_full_disk_lacks_is_said() -> None:
    behind = RuntimeError("unexpected pos 64 vs 0")
    behind.__context__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (behind, RuntimeError("Error while serializing: No space left on device (os error 28)")):
        assert re.search(
            r"No space left on device.* \([\d,.]+ [kMG]B are free there, about 5 MB are needed\)",
            why_not_written(error, Path(), needed=5_000_000),
        )
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert why_not_written(quota, Path(), 5_000) == "Disk quota exceeded (about 5 kB are needed)"
    assert why_not_written(OSError(errno.EACCES, "Permission denied"), Path(), 5) == "Permission denied"


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = acodm("proxy-train", "--cache-dir", "~no-such-user/cache", "--out", tmp_path / "a.parquet")
    assert outcome.code == 2
    assert "there is no place for the token cache: " in outcome.stderr
    manifest = tmp_path / "m.toml"
    manifest.write_text('[domains.a]\nfiles = "~no-such-user/*.txt"\n')
    outcome = acodm("proxy-train", "--data", manifest, "--tokenizer", "x", "--out", tmp_path / "a.parquet")
    assert outcome.code == 2
    assert "~no-such-user" in outcome.stderr


def test_the_answer_to_a_signal_stays_below_the_progress() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    display = TrainingDisplay(console, ["a", "b"], np.array([0.5, 0.5]), total_steps=3, first_step=0)
    try:
        display.say("SIGINT: stopping after this step")
        with console.capture() as shown:
            console.print(display)
    finally:
        display.close()
    assert shown.get().rstrip().splitlines()[-1].endswith("SIGINT: stopping after this step\x1b[0m")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_before_a_run_is_whole(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width)
    use = DomainUse("a_domain_with_a_long_name_train", 1, 2960, 1_390_000, 66_600, 0.1, 1.25, 196)
    print_preflight(console, [use], "prior")
    head, row, *_ = file.getvalue().splitlines()
    assert head.split()[0] == "domain"
    assert "runs out at" in head
    assert row.split()[-1] == "196"
    assert row.count("…") == (0 if width == 140 else 1)
    assert max(len(head.rstrip()), len(row.rstrip())) <= width


def test_where_a_model_is_not_saved(data: Path, small: list[object], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for model, message in (
        (data, "--data"),
        (data / "model", "--data"),
        (data.parent, "would lie in each other"),
        (tmp_path / "a.run" / "model", "the run's folder"),
        (tmp_path / "a.parquet", "--out"),
        (tmp_path / "notes", "holds diary.txt, which is no part of a saved model"),
        (tmp_path / "file", "is a file"),
    ):
        outcome = acodm(
            "proxy-train", "--steps", 2, "--force", "--save-model", model, "--out", tmp_path / "a.parquet", *small
        )
        assert outcome.code == 2, (model, outcome.stderr)
        assert message in outcome.stderr
    assert (tmp_path / "notes" / "diary.txt").read_text() == "mine"


def test_two_runs_do_not_save_one_model(small: list[object], tmp_path: Path) -> None:
    with RunFolder(tmp_path / "other.parquet").model_locked(str(tmp_path / "model")):
        outcome = acodm(
            "proxy-train", "--steps", 2, "--save-model", tmp_path / "model", "--out", tmp_path / "a.parquet", *small
        )
        assert outcome.code == 2
        assert "another run will save its model in" in outcome.stderr
    outcome = acodm(
        "proxy-train", "--steps", 2, "--save-model", tmp_path / "model", "--out", tmp_path / "a.parquet", *small
    )
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "model"]


def test_a_saved_model_is_what_was_trained(data: Path, tokenizer_file: Path, cache: Path, tmp_path: Path) -> None:
    """It generates, takes padded batches, and gives the tokens of training."""
    definition = json.loads(tokenizer_file.read_text())
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (tmp_path / "begins.json").write_text(json.dumps(definition))
    corpus = [
        "--data",
        data,
        "--tokenizer",
        tmp_path / "begins.json",
        "--cache-dir",
        cache,
        "--seq-len",
        32,
        "--batch",
        8,
    ]
    for model in ("pythia-14m", "llama-tiny"):
        folder = tmp_path / model
        run = [
            "--model",
            model,
            "--steps",
            2,
            "--device",
            "cpu",
            "--save-model",
            folder,
            "--out",
            tmp_path / f"{model}.parquet",
        ]
        outcome = acodm("proxy-train", *run, *corpus)
        assert outcome.code == 0, outcome.stderr
        saved = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer("a + b").input_ids[0] != 0
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
        assert tokenizer.model_max_length == saved.config.max_position_embeddings == 32
        assert saved.config.use_cache is True
        batch = tokenizer(["a + b", "def f(x):"], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        assert saved.generate(**batch, max_new_tokens=5, do_sample=False).shape[0] == 2


def test_a_log_has_no_width(small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    names = ["a_domain_with_a_very_long_name_of_a_topic_and_a_format_quality_" + end for end in ("high", "low")]
    for source, name in zip(("code", "prose"), names, strict=True):
        shutil.copytree(data / source, tmp_path / "data" / name)
    command = ["proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", "--data", tmp_path / "data", *small[2:]]
    trained = acodm(*command)
    shown = acodm("inspect", tmp_path / "a.parquet")
    for name in names:
        assert trained.stderr.count(name) >= 2
        assert name in shown.stdout
    for head in ("documents", "epochs", "runs out at step"):
        assert head in trained.stderr
    assert max(map(len, shown.stdout.splitlines()[:3])) < 200


def test_names_are_cut_in_their_middle() -> None:
    assert cut("short", 8) == "short"
    assert cut("weborganizer_quality_high", 11) == "webor…_high"
    assert len(cut("weborganizer_quality_high", 12)) == 12


def test_a_schedule_that_is_stretched_is_warned_of(proxy: Path, small: list[object], tmp_path: Path) -> None:
    command = ["apply", "--schedule", proxy, "--mode", "replay", "--model", "pythia-14m", "--dry-run", *small]
    assert "stretched" not in acodm(*command, "--steps", 300).stderr
    said = acodm(*command, "--steps", 800).stderr
    assert "weights recorded over 1.02e+04 tokens are stretched over 2.05e+05, 20 times as many" in said
    assert "stretched" not in acodm(*command, "--steps", 800, "--replay-by", "steps").stderr


def test_a_run_is_not_merged_with_itself(proxy: Path, tmp_path: Path) -> None:
    shutil.copy(proxy, tmp_path / "copy.parquet")
    outcome = acodm("inspect", "--merge", proxy, tmp_path / "copy.parquet")
    assert outcome.code == 2
    assert "files 1 and 2 are the same run, which would count twice" in outcome.stderr


def test_threads(small: list[object], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert acodm("proxy-train", "--steps", 1, "--threads", 2, "--out", tmp_path / "a.parquet", *small).code == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_models_that_cannot_be_trained(small: list[object], tmp_path: Path) -> None:
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    for name, config, message in (
        ("absurd", shape | {"model_type": "gpt_neox", "num_hidden_layers": 10**6}, "its num_hidden_layers is 1000000"),
        ("negative", shape | {"model_type": "gpt_neox", "hidden_size": -64}, "its hidden_size is -64"),
        ("bert", shape | {"model_type": "bert"}, "sees the tokens that it is to predict"),
        ("deep", "[" * 10**5 + "]" * 10**5, "cannot load the configuration"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        command = ["proxy-train", "--steps", 2, "--model", tmp_path / name, "--out", tmp_path / "a.parquet"]
        outcome = acodm(*command, *small)
        assert outcome.code == 2, outcome.stderr
        assert message in outcome.stderr


def test_numbers_that_are_none(tmp_path: Path) -> None:
    for options, message in (
        (["--steps", "abc"], "error: --steps abc; give a whole number\n"),
        (["--lr", "x"], "error: --lr x; give a number\n"),
        (
            ["--text-field", "body"],
            "error: --text-field says how text is read; give the text with --data, or leave it out\n",
        ),
    ):
        outcome = acodm("proxy-train", *options, "--out", tmp_path / "a.parquet")
        assert (outcome.code, outcome.stderr.splitlines(keepends=True)[-1]) == (2, message)
