"""Curricula of one's own: what a table says, at every step of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acodm_cli import Schedule
from acodm_cli.errors import ScheduleError
from acodm_cli.schedule import curriculum
from acodm_cli.schedule.measures import in_single
from tests.command_line import acodm
from tests.schedule.test_schedule import make_schedule

# Mostly web at first, then code: 0.8 at step 1, 0.5 at step 4, and nothing else is said.
POINTS = [(1, "web", 0.8), (1, "code", 0.2), (4, "web", 0.5), (4, "code", 0.5)]
BY_STEP = [[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.5, 0.5]]
STAGES: dict[str, Any] = {
    "target": {"steps": 5, "batch": 8, "seq_len": 16},
    "domains": ["web", "code"],
    "stages": [
        {"first_step": 0, "steps": 2, "weights": {"web": 0.9, "code": 0.1}},
        {"first_step": 2, "steps": 3, "weights": {"code": 1.0}},
    ],
}
BY_STAGE = [[0.9, 0.1], [0.9, 0.1], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]


def frame(rows: Sequence[tuple[Any, str, float]] = POINTS, at: str = "step") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[at, "domain", "weight"])


def test_points_are_joined_by_lines(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "a.csv", index=False)
    frame().to_parquet(tmp_path / "b.parquet")
    frame().to_json(tmp_path / "c.json", orient="records")
    (tmp_path / "d.json").write_text(
        json.dumps(
            [{"step": 4, "weights": {"web": 0.5, "code": 0.5}}, {"step": 1, "weights": {"web": 0.8, "code": 0.2}}]
        )
    )
    (tmp_path / "e.csv").write_text("step,tokens,web,code\n1,0,0.8,0.2\n4,0,0.5,0.5\n")
    made = Schedule.from_weights(["web", "code"], [[0.8, 0.2], [0.5, 0.5]], step=[1, 4])
    read = [Schedule.load(path) for path in sorted(tmp_path.iterdir())]
    assert len(read) == 5
    for schedule in (*read, made):
        assert schedule.domains == ["web", "code"]
        assert schedule.step_S.tolist() == [1, 2, 3, 4]
        assert schedule.run.steps == 4
        np.testing.assert_allclose(schedule.weights_SK, BY_STEP, atol=1e-7)


def test_points_hold_before_the_first_and_after_the_last() -> None:
    schedule = Schedule.from_weights(["a", "b"], [[1, 0], [0, 1]], step=[2, 4], steps=6, batch=8, seq_len=16)
    np.testing.assert_allclose(schedule.weights_SK[:, 0], [1, 1, 0.5, 0, 0, 0])
    assert schedule.tokens_S.tolist() == [128 * step for step in range(1, 7)]
    assert (schedule.run.steps, schedule.run.batch, schedule.run.seq_len) == (6, 8, 16)


def test_progress_is_a_share_of_any_run() -> None:
    schedule = Schedule.from_weights(["a", "b"], [[1, 0], [0, 1]], progress=[0, 0.5])
    for progress, share in ((0.25, 0.5), (0.4, 0.2), (0.5, 0), (1, 0)):
        assert schedule.weights(progress=progress)[0] == pytest.approx(share, abs=2e-3)
    assert schedule.run.steps is None
    of_ten = Schedule.from_weights(["a", "b"], [[1, 0], [0, 1]], progress=[0, 1], steps=10)
    np.testing.assert_allclose(of_ten.weights_SK[:, 1], (np.arange(10) + 0.5) / 10, atol=1e-7)


def test_stages_are_constant(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(STAGES))
    rows = [(s["first_step"], s["steps"], *item) for s in STAGES["stages"] for item in s["weights"].items()]
    pd.DataFrame(rows, columns=["first_step", "steps", "domain", "weight"]).to_csv(tmp_path / "b.csv", index=False)
    pd.DataFrame(rows, columns=["first_step", "steps", "domain", "weight"]).to_parquet(tmp_path / "c.parquet")
    made = Schedule.from_weights(["web", "code"], [[0.9, 0.1], [0.0, 1.0]], first_step=[0, 2], steps=5)
    for schedule in (*map(Schedule.load, sorted(tmp_path.iterdir())), made):
        np.testing.assert_allclose(schedule.weights_SK, BY_STAGE, atol=1e-7)
    assert Schedule.load(tmp_path / "a.json").tokens_S.tolist() == [128, 256, 384, 512, 640]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_what_is_exported_is_read_as_it_was(form: str, tmp_path: Path) -> None:
    """Also names that CSV must guard or quote."""
    names = ["=cmd", "a,b", "'c"]
    weights = [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]
    made = Schedule.from_weights(names, weights, first_step=[0, 30], steps=100, batch=4, seq_len=8)
    made.write(tmp_path / "made.parquet")
    assert acodm("inspect", tmp_path / "made.parquet", "--export", form, "--out", tmp_path / "out").code == 0
    read = Schedule.load(tmp_path / "out" / f"mixture.{form}")
    assert read.domains == names
    np.testing.assert_allclose(read.weights_SK, made.weights_SK, atol=1e-7)


def test_one_point_is_a_static_mixture(tmp_path: Path) -> None:
    schedule = Schedule.from_weights(["a", "b"], [0.25, 0.75])
    schedule.write(tmp_path / "a.parquet")
    read = Schedule.load(tmp_path / "a.parquet")
    assert read.weights_SK.tolist() == [[0.25, 0.75]]
    assert read.run.steps is None
    assert "the same weights all the time" in acodm("inspect", tmp_path / "a.parquet").stdout


def test_long_runs_have_rows_of_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curriculum, "MOST_ROWS", 100)
    schedule = Schedule.from_weights(["a", "b"], [[1, 0], [0, 1]], first_step=[0, 300], steps=1000)
    assert schedule.step_S.tolist() == list(range(10, 1001, 10))
    assert schedule.weights_SK[:, 0].tolist() == [1] * 30 + [0] * 70


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("step,domain,weight\n1,a,0.5\n1,b,0.4\n", "the weights at step 1 add up to 0.9"),
        ("step,domain,weight\n1,a,1.5\n1,b,-0.5\n", "are negative"),
        ("step,domain,weight\n1,a,1\n1,a,0\n", "step 1 has two weights of domain 'a'"),
        ("step,domain,weight\n1,a,much\n", "'much' is not a number"),
        ("step,domain,weight\n1,a,nan\n", "'nan' is not a finite number"),
        ("step,domain,weight\n1,a\n", "do not have the 3 columns"),
        ("step,domain,weight\n1.5,a,1\n", "step must be a whole number"),
        ("step,domain,weight\n", "give columns step"),
        ("progress,domain,weight\n2,a,1\n", "from 0 to 1, not 2"),
        ("step,progress,domain,weight\n1,1,a,1\n", "it has step and progress"),
        ("time,domain,weight\n1,a,1\n", "neither step, nor progress"),
        ("first_step,steps,domain,weight\n1,1,a,1\n", "must begin at first_step 0"),
        ("first_step,domain,weight\n0,a,1\n5,a,1\n", "how long the last stage is"),
        ("first_step,steps,domain,weight\n0,4,a,1\n5,5,a,1\n", "end at step 4 the next one does not begin"),
        ('step,domain,weight\n1,"a,1\n', "it is not CSV"),
        ("", "neither step"),
    ],
)
def test_what_is_no_curriculum_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    outcome = acodm("inspect", tmp_path / "a.csv")
    assert outcome.code == 3
    assert says in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[]", "[1]", '{"stages": []}', '[{"step": 1}]', '[{"step": 1, "domain": "a", "weight": true}]', "[" * 100_000, "nonsense",
        '[{"step": 1, "domain": "a", "weight": 1e400}]', '[{"step": 1e30, "domain": "a", "weight": 1}]', '[{"step": 1, "weights": {"": 1}}]',
        '{"domains": [1], "stages": [{"first_step": 0, "steps": 1, "weights": {"a": 1}}]}', '\ufeff\x00',
        '{"target": {"steps": 1000000000000, "batch": 1000000000000, "seq_len": 1000000000}, "stages": [{"step": 1, "weights": {"a": 1}}]}',
    ],
)  # fmt: skip
def test_json_of_a_stranger_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ScheduleError, match="cannot be read as a curriculum"):
        Schedule.load(tmp_path / "a.json")


def test_large_tables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curriculum, "MOST_BYTES", 10)
    frame().to_csv(tmp_path / "a.csv")
    with pytest.raises(ScheduleError, match="larger than"):
        Schedule.load(tmp_path / "a.csv")
    monkeypatch.setattr(curriculum, "MOST_WEIGHTS", 3)
    frame().to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ScheduleError, match="more than acodm reads"):
        Schedule.load(tmp_path / "a.parquet")


# Schedules that were edited


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_schedule_edited_with_pandas_keeps_its_rows_and_says_what_it_lost(shuffled: bool, tmp_path: Path) -> None:
    original = make_schedule(40)
    original.write(tmp_path / "a.parquet")
    table = pd.read_parquet(tmp_path / "a.parquet")
    code = table["domain"] == "code"
    table.loc[code, "weight"] += 1  # more code at every step
    table["weight"] /= table.groupby("step")["weight"].transform("sum")
    if shuffled:
        table = table.sample(frac=1, random_state=0)
    table.to_parquet(tmp_path / "edited.parquet")
    edited = Schedule.load(tmp_path / "edited.parquet").in_order_of(original.domains)
    expected_SK = original.weights_SK + np.array([0, 1, 0])
    np.testing.assert_allclose(edited.weights_SK, expected_SK / expected_SK.sum(axis=1, keepdims=True), atol=1e-6)
    for name in ("loss", "samples", "validation_loss"):
        np.testing.assert_array_equal(edited.per_domain[name], original.per_domain[name])
    np.testing.assert_array_equal(edited.per_step["train_loss"], original.per_step["train_loss"])
    assert edited.tokens_S.tolist() == original.tokens_S.tolist()
    assert (edited.policy, edited.run.steps) == (None, 40)
    shown = acodm("inspect", tmp_path / "edited.parquet").stdout
    assert "has lost acodm's metadata" in shown
    edited.write(tmp_path / "again.parquet")
    assert np.array_equal(Schedule.load(tmp_path / "again.parquet").weights_SK, edited.weights_SK)


def test_parts_of_a_schedule_suffice(tmp_path: Path) -> None:
    original = make_schedule(40)
    original.write(tmp_path / "a.parquet")
    pd.read_parquet(tmp_path / "a.parquet", columns=["step", "domain", "weight"]).to_parquet(tmp_path / "b.parquet")
    assert np.array_equal(Schedule.load(tmp_path / "b.parquet").weights_SK, in_single(original.weights_SK))


def test_edited_schedules_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    make_schedule(4).write(path)
    table = pd.read_parquet(path)
    negative, missing = table.copy(), table.copy()
    negative.loc[0, "weight"] = -1
    missing["domain"] = missing["domain"].astype(object)
    missing.loc[3, "domain"] = None
    for changed, says in (
        (table.iloc[1:], "does|do not list every domain"),
        (table.iloc[:0], "no rows"),
        (negative, "not on the simplex"),
        (missing, "without a domain"),
        (table.drop(columns="weight"), "no columns domain and weight"),
    ):
        changed.to_parquet(path)
        with pytest.raises(ScheduleError, match=says):
            Schedule.load(path)
    pq.write_table(pa.table({"step": [1], "domain": ["a"], "weight": [[1.0]]}), path)
    with pytest.raises(ScheduleError):
        Schedule.load(path)


def test_a_schedule_without_columns_cannot_be_written(tmp_path: Path) -> None:
    make_schedule().write(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"Schedule\.from_weights"):
        Schedule.load(tmp_path / "a.parquet", ["loss"]).write(tmp_path / "b.parquet")
    assert not (tmp_path / "b.parquet").exists()


# Weights as probabilities


def test_weights_in_single_precision_add_up_to_one() -> None:
    generator = np.random.default_rng(0)
    for num_domains in (1, 2, 3, 22, 500):
        for concentration in (0.05, 1.0, 50.0):
            weights_SK = generator.dirichlet(np.full(num_domains, concentration), 300)
            single_SK = in_single(weights_SK)
            assert abs(single_SK.astype(np.float64).sum(axis=1) - 1).max() <= 1.1e-8
            np.testing.assert_allclose(single_SK, weights_SK, atol=1.3e-7)
            assert np.array_equal(in_single(single_SK), single_SK)
    assert in_single(np.array([1 - 2e-8, 2e-8])).sum(dtype=np.float64) == 1


def test_what_is_recorded_and_printed_are_probabilities(proxy: Path, tmp_path: Path) -> None:
    """numpy.random.Generator.choice, which `datasets.interleave_datasets` calls, is strict about the sum."""
    table = pd.read_parquet(proxy).pivot(index="step", columns="domain", values="weight")
    printed = list(csv.reader(io.StringIO(acodm("inspect", proxy, "--csv").stdout)))[1:]
    # Schedules of before were not rounded so; what is printed of them is right all the same.
    old = Schedule.load(proxy)
    rough = replace(old, per_domain=old.per_domain | {"weight": old.per_domain["weight"] * np.float32(1.0001)})
    rough.write(tmp_path / "rough.parquet")
    of_rough = list(csv.reader(io.StringIO(acodm("inspect", tmp_path / "rough.parquet", "--csv").stdout)))[1:]
    rows = [row.tolist() for _, row in table.iterrows()] + [[float(x) for x in row[2:]] for row in printed + of_rough]
    assert len(rows) == 3 * len(table)
    for row in rows:
        np.random.default_rng(0).choice(len(row), p=row)
    assert max(abs(sum(float(x) for x in row[2:]) - 1) for row in printed) < 1e-15 * 8


def test_a_curriculum_is_applied(small: list[object], data: Path, tmp_path: Path) -> None:
    rows = [
        (at, name, weight)
        for at, weights in ((0, (0.7, 0.1, 0.1, 0.1)), (1, (0.1, 0.1, 0.1, 0.7)))
        for name, weight in zip(("arithmetic", "code", "prose", "tables"), weights, strict=True)
    ]
    frame(rows, "progress").to_csv(tmp_path / "mine.csv", index=False)
    how = ["--model", "llama-tiny", "--steps", 4, "--out", tmp_path / "out.parquet", *small]
    outcome = acodm("apply", "--schedule", tmp_path / "mine.csv", *how)
    assert outcome.code == 0, outcome.stderr
    arithmetic_S = Schedule.load(tmp_path / "out.parquet").weights_SK[:, 0]
    np.testing.assert_allclose(arithmetic_S, 0.7 - 0.6 * np.array([0.125, 0.375, 0.625, 0.875]), atol=1e-3)
    refused = acodm("apply", "--schedule", tmp_path / "mine.csv", "--replay-by", "steps", "--force", *how)
    assert refused.code == 2
    assert "replay it by progress" in refused.stderr
