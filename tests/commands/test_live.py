"""A run that is still going can be looked at."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from acodm_cli.schedule.schedule import Schedule
from tests.command_line import acodm, start_acodm


@pytest.mark.slow
def test_a_run_that_is_going_is_shown(small: list[object], tmp_path: Path) -> None:
    out, folder = tmp_path / "a.parquet", tmp_path / "a.run"
    process = start_acodm("proxy-train", "--steps", 5000, "--out", out, *small)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "record.parquet").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        shown = acodm("inspect", folder)
        assert shown.code == 0, shown.stderr
        assert "mixer     ac-odm  no policy" in shown.stdout
        assert "of 5,000" in shown.stdout
        assert json.loads(acodm("inspect", folder, "--json").stdout)["info"]["steps"] == 5000
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert len(Schedule.load(folder)) >= 1
    assert acodm("proxy-train", "--out", out, "--steps", 2, "--force", *small).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_run_that_has_recorded_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.run").mkdir()
    outcome = acodm("inspect", tmp_path / "a.run")
    assert outcome.code == 3
    assert "has recorded nothing yet; look again in a moment" in outcome.stderr
    ended = acodm("inspect", tmp_path / "b.run")
    assert f"it has ended (see {tmp_path / 'b.parquet'}) or has not begun" in ended.stderr


def test_any_column_is_plotted(proxy: Path, tmp_path: Path) -> None:
    shown = acodm("inspect", proxy, "--plot", "critic_loss")
    assert shown.code == 0, shown.stderr
    assert "critic loss" in shown.stdout
    assert acodm("inspect", proxy, "--plot", "train_loss", "--csv").stdout.startswith("step,tokens,train loss\n")
    refused = acodm("inspect", proxy, "--plot", "tarin_loss")
    assert refused.code == 2
    assert "no column 'tarin_loss' to plot; known: weights, loss, reward" in refused.stderr
    assert acodm("inspect", proxy, "--plot", "learning_rate", "--image", tmp_path / "a.png").code == 0
    assert acodm("inspect", proxy, "--plot", "learning_rate", "--html", tmp_path / "a.html").code == 0
    assert "learning rate" in (tmp_path / "a.html").read_text()
