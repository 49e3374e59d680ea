"""Trackers never cost a run or a file that is not theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.settings import RunSettings
from acodm_cli.schedule.schedule import Schedule
from tests.command_line import acodm, contents


def test_a_full_disk_of_a_tracker_costs_nothing_else(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    out.with_suffix(".jsonl").symlink_to("/dev/full")
    refused = acodm("proxy-train", "--steps", 3, "--track", "jsonl", "--out", out, *small)
    assert "a.jsonl was not written by --track jsonl" in refused.stderr
    out.with_suffix(".jsonl").unlink()
    (tmp_path / "small.jsonl").touch()
    assert acodm("proxy-train", "--steps", 3, "--track", "jsonl", "--out", out, *small).code == 0
    assert len(Schedule.load(out)) == 3


def interrupted_run(out: Path, small: list[object], *options: object) -> None:
    """The folder of a run of three steps that has not begun to train."""
    given = {str(name): value for name, value in zip(small[::2], small[1::2], strict=True)}
    settings = RunSettings(
        steps=3, data=str(given["--data"]), tokenizer=str(given["--tokenizer"]), cache_dir=str(given["--cache-dir"]),
        seq_len=32, batch=8, validation_sequences=4, device="cpu", track=tuple(map(str, options)),
    )  # fmt: skip
    folder = RunFolder(out)
    with folder.locked():
        folder.begin(settings)


def test_a_resumed_run_may_begin_and_end_to_be_tracked(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    interrupted_run(out, small)
    out.with_suffix(".jsonl").write_text('{"text": "precious"}\n')
    before = contents(tmp_path)
    refused = acodm("proxy-train", "--out", out, "--resume", "--track", "jsonl")
    assert refused.code == 2
    assert "a.jsonl was not written by --track jsonl; give another --out" in refused.stderr
    assert contents(tmp_path) == before
    out.with_suffix(".jsonl").unlink()
    assert acodm("proxy-train", "--out", out, "--resume", "--track", "jsonl").code == 0
    assert len(out.with_suffix(".jsonl").read_text().splitlines()) == 3

    other = tmp_path / "b.parquet"
    interrupted_run(other, small, "jsonl")
    other.with_suffix(".jsonl").mkdir()
    assert acodm("proxy-train", "--out", other, "--resume").code == 2
    assert acodm("proxy-train", "--out", other, "--resume", "--track", "none").code == 0


def test_what_cannot_begin_leaves_the_run_before_as_it_was(
    small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.parquet"
    interrupted_run(out, small)
    before = contents(tmp_path)
    monkeypatch.setattr("acodm_cli.runs.trackers.jsonl.JsonLines.__init__", lambda self, tracked: 1 / 0)
    refused = acodm("proxy-train", "--steps", 2, "--force", "--track", "jsonl", "--out", out, *small)
    assert refused.code == 2
    assert "--track jsonl cannot begin: division by zero" in refused.stderr
    assert contents(tmp_path) == before


def test_a_complete_run_is_not_cleared_under_another_process(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    assert acodm("proxy-train", "--steps", 2, "--out", out, *small).code == 0
    with RunFolder(out).locked():
        refused = acodm("proxy-train", "--out", out, "--resume")
        assert "another acodm is running" in refused.stderr
        assert (tmp_path / "a.run" / "lock").is_file()
    assert "is complete; nothing to resume" in acodm("proxy-train", "--out", out, "--resume").stderr


@pytest.mark.parametrize("out", [".", "", "/"])
def test_places_without_a_name(out: str, small: list[object]) -> None:
    refused = acodm("proxy-train", "--steps", 2, "--out", out, *small)
    assert refused.code == 2
    assert "must end in .parquet" in refused.stderr


def test_a_mistyped_plot_is_told_whatever_is_written(proxy: Path, tmp_path: Path) -> None:
    for how in (["--html", tmp_path / "a.html"], ["--plain"], ["--json"], ["--csv"]):
        refused = acodm("inspect", proxy, "--plot", "typo", *how)
        assert refused.code == 2
        assert "no column 'typo' to plot" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_link_stays_and_leads_to_what_was_written(proxy: Path, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    (tmp_path / "real.html").write_text("old")
    assert acodm("inspect", proxy, "--html", tmp_path / "link.html", "--force").code == 0
    assert (tmp_path / "link.html").is_symlink()
    assert "domain weights" in (tmp_path / "real.html").read_text()
    (tmp_path / "null.html").symlink_to("/dev/null")
    assert acodm("inspect", proxy, "--html", tmp_path / "null.html", "--force").code == 0
    assert (tmp_path / "null.html").is_symlink()


def test_numbers_of_a_stranger_that_no_run_can_have(proxy: Path, small: list[object], tmp_path: Path) -> None:
    schedule = Schedule.load(proxy)
    schedule.info.update(seed=2**35, batch=2**40, steps=2**40, seq_len=1)
    schedule.write(tmp_path / "odd.parquet")
    how = [
        "--schedule",
        tmp_path / "odd.parquet",
        "--model",
        "pythia-14m",
        "--dry-run",
        "--out",
        tmp_path / "a.parquet",
    ]
    shown = acodm("apply", *how, *small[:6], "--device", "cpu")
    assert shown.code == 0, shown.stderr
    assert "run: 300 steps of 32 x 128" in shown.stderr


def test_a_live_record_that_has_changed_is_not_resumed_with(proxy: Path, small: list[object], tmp_path: Path) -> None:
    (tmp_path / "live.run").mkdir()
    (tmp_path / "live.run" / "record.parquet").write_bytes(proxy.read_bytes())
    from acodm_cli.mixing.baselines.replay import ReplayMixer
    from acodm_cli.runs.build import input_digests

    settings = RunSettings(command="apply", schedule=str(tmp_path / "live.run"))
    mixer = ReplayMixer(Schedule.load(proxy).timeline)
    before = input_digests(settings, mixer)
    changed = Schedule.load(proxy)
    changed.info.update(note="later")
    changed.write(tmp_path / "live.run" / "record.parquet")
    assert input_digests(settings, mixer) != before
    refused = acodm("apply", "--schedule", tmp_path / "live.run", "--model", "pythia-14m", "--out", tmp_path / "live.parquet", "--force", *small)  # fmt: skip
    assert "is the schedule itself" in refused.stderr


def test_help_of_options_with_mistakes() -> None:
    assert "there is no --agent foo" in acodm("proxy-train", "--agent", "foo", "--mixer-option", "help").stderr
    assert "there is no mixer foo" in acodm("proxy-train", "--mixer", "foo", "--mixer-option", "help").stderr
    assert "whose weights are followed" in acodm("apply", "--mode", "replay", "--mixer-option", "help").stdout


def test_numbers_that_are_too_large(small: list[object], tmp_path: Path) -> None:
    refused = acodm("proxy-train", "--steps", "1" + "0" * 400, "--out", tmp_path / "a.parquet", *small)
    assert refused.code == 2
    assert "give a whole number" in refused.stderr
    assert json.loads(json.dumps(RunSettings(track=("jsonl", "jsonl", "none")).trackers)) == ["jsonl"]
