"""Trackers are read back with their own readers. Those whose package is not installed are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.runs import trackers
from acodm_cli.runs.trackers import check_trackers
from acodm_cli.runs.trackers.jsonl import JsonLines
from acodm_cli.runs.trackers.tracker import Tracked, Tracker
from acodm_cli.schedule.schedule import Schedule
from tests.command_line import acodm


@pytest.fixture(scope="module")
def tracked(small: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tracked") / "a.parquet"
    outcome = acodm("proxy-train", "--steps", 15, "--track", "jsonl", "--track", "tensorboard", "--out", out, *small)
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.jsonl", "a.parquet", "a.tensorboard"]
    return out


def expected_of(out: Path) -> dict[str, np.ndarray]:
    schedule = Schedule.load(out)
    named = {"train/loss": schedule.per_step["train_loss"], "mixer/critic_loss": schedule.per_step["critic_loss"]}
    for kind, column in (("weights", "weight"), ("reward", "reward"), ("validation", "validation_loss")):
        for index, domain in enumerate(schedule.domains):
            named[f"{kind}/{domain}"] = schedule.per_domain[column][:, index]
    return named


def test_json_lines_by_pandas(tracked: Path) -> None:
    frame = pd.read_json(tracked.with_suffix(".jsonl"), lines=True).set_index("step")
    assert frame.index.tolist() == list(range(1, 16))
    for name, values_S in expected_of(tracked).items():
        assert np.allclose(frame[name], values_S, rtol=1e-5, equal_nan=True), name
    assert (frame["train/tokens_per_second"] > 0).all()


def test_tensorboard_by_its_own_reader(tracked: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = event_accumulator.EventAccumulator(str(tracked.with_name("a.tensorboard")))
    reader.Reload()
    for name, values_S in expected_of(tracked).items():
        found = {event.step: event.value for event in reader.Scalars(name)}
        known = {step: value for step, value in enumerate(values_S.tolist(), 1) if np.isfinite(value)}
        assert found.keys() == known.keys(), name
        assert list(found.values()) == pytest.approx(list(known.values()), rel=1e-5), name


def of_run(out: Path, step: int = 0, resumed: bool = False, said: list[str] | None = None) -> Tracked:
    warn = (said if said is not None else []).append
    return Tracked(out, {"seed": 0}, ["a", "b"], 100, step, resumed, warn)


@pytest.mark.parametrize("name", ["jsonl", "tensorboard"])
def test_a_resumed_run_is_tracked_once(name: str, tmp_path: Path) -> None:
    """Three steps, the last of them after the checkpoint; then from the checkpoint on, and a line that was cut is no matter."""
    out = tmp_path / "a.parquet"
    first = trackers.make_tracker(name, of_run(out))
    for step in (1, 2, 3):
        first.log(step, {"x": float(step)})
    first.close()
    if name == "jsonl":
        with out.with_suffix(".jsonl").open("a") as file:
            file.write('{"step": 4, "x"')
    second = trackers.make_tracker(name, of_run(out, step=2, resumed=True))
    for step in (3, 4):
        second.log(step, {"x": 10.0 * step})
    second.close()
    expected = {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}
    if name == "jsonl":
        frame = pd.read_json(out.with_suffix(".jsonl"), lines=True)
        assert dict(zip(frame["step"], frame["x"], strict=True)) == expected
    else:
        event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        reader = event_accumulator.EventAccumulator(str(tmp_path / "a.tensorboard"))
        reader.Reload()
        assert {event.step: event.value for event in reader.Scalars("x")} == expected


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_in_their_offline_modes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Before they are imported, which is when they look.
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name)
    tracker = trackers.make_tracker(name, of_run(tmp_path / "a.parquet"))
    tracker.log(1, {"weights/a": 0.25})
    tracker.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"weights/a" in kept


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    out.with_suffix(".jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    with pytest.raises(UsageError, match=r"a.jsonl exists; use --force"):
        check_trackers(["jsonl"], out, force=False)
    check_trackers(["jsonl"], out, force=True)


def test_what_it_has_not_written_is_not_touched(tmp_path: Path) -> None:
    """Not with --force, and not on --resume."""
    out = tmp_path / "a.parquet"
    out.with_suffix(".jsonl").write_text('{"text": "a corpus"}\n')
    with pytest.raises(UsageError, match=r"a.jsonl was not written by --track jsonl; give another --out"):
        check_trackers(["jsonl"], out, force=True)
    out.with_suffix(".jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    check_trackers(["jsonl"], out, force=True)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonLines, "package", "no_such_package")
    with pytest.raises(
        UsageError, match=r"--track jsonl needs the package no_such_package; pip install 'acodm\[jsonl\]'"
    ):
        check_trackers(["jsonl"], tmp_path / "a.parquet", force=False)


class Failing(Tracker):
    """A tracker whose disk is full."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        raise OSError(28, "No space left on device")

    def end(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_tracker_that_fails_does_not_stop_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = Failing(of_run(tmp_path / "a.parquet", said=said))
    for step in (1, 2):
        tracker.add(event(step))
    tracker.close()
    assert said == ["the tracker Failing failed at step 1 and is given up: No space left on device"]


def event(step: int) -> Any:
    from acodm_cli.engine.trainer import StepEvent
    from acodm_cli.mixing.mixer import Report

    half_K = np.full(2, 0.5)
    numbers = {"train_loss": 1.0, "learning_rate": 1.0, "gradient_norm": 1.0}
    energies = {"interaction_energy": float("nan"), "self_energy": float("nan")}
    return StepEvent(
        step, 1, step, 100, half_K, np.ones(2, np.int64), half_K, **numbers, **energies, report=Report(), validation=None,
        seconds_of={"model": 1.0},
    )  # fmt: skip
