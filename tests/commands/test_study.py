"""`proxy-train --seeds`: runs of several seeds and of baselines, however they are started, end in the same file."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from acodm_cli.schedule.schedule import Schedule
from tests.command_line import Outcome, acodm, start_acodm

STEPS = 6


@pytest.fixture(scope="module")
def options(small: list[object]) -> list[object]:
    """Of a study of 2 seeds and 2 mixers."""
    of_run = ["--steps", STEPS, "--validate-every", 2, "--checkpoint-every", 1, "--threads", 1]
    return ["--seeds", "0,1", "--against", "uniform", *of_run, *small]


@pytest.fixture(scope="module")
def commands(options: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The commands that a study prints, carried out one by one. The path of the study's schedule, which is not there yet."""
    out = tmp_path_factory.mktemp("study") / "out.parquet"
    printed = acodm("proxy-train", *options, "--print-commands", "--out", out)
    assert printed.code == 0, printed.stderr
    lines = printed.stdout.splitlines()
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "acodm"
        done = acodm(*arguments)
        assert done.code == 0, done.stderr
    return out, lines


@pytest.fixture(scope="module")
def collected(options: list[object], commands: tuple[Path, list[str]]) -> Outcome:
    """The study after its commands: it only collects."""
    outcome = acodm("proxy-train", *options, "--out", commands[0])
    assert outcome.code == 0, outcome.stderr
    return outcome


def test_printed_commands_are_ordinary_runs(commands: tuple[Path, list[str]]) -> None:
    out, lines = commands
    mixers = [("ac-odm", 0), ("uniform", 0), ("ac-odm", 1), ("uniform", 1)]
    assert [line.split()[-1] for line in lines] == [
        str(out.parent / "out.study" / f"{mixer}-seed-{seed}.parquet") for mixer, seed in mixers
    ]
    assert ["--mixer uniform" in line for line in lines] == [False, True, False, True]
    assert ["--seed 1" in line for line in lines] == [False, False, True, True]


def test_baselines_have_settings_of_their_own(options: list[object], tmp_path: Path) -> None:
    """A baseline without words keeps what it knows of the studied mixer's settings."""
    against = "ac-odm:agent=paper:anchor=0,swarm:episodes=5,swarm"
    given = ["--prior", "natural", "--mixer-option", "gamma=0.5", *options, "--seeds", 0, "--against", against]
    printed = acodm("proxy-train", *given, "--print-commands", "--out", tmp_path / "out.parquet")
    assert printed.code == 0, printed.stderr
    studied, paper, swarm, plain = printed.stdout.splitlines()
    assert "gamma=0.5" in studied
    assert "--agent paper" in paper
    assert "--mixer-option anchor=0" in paper
    assert "gamma" not in paper
    assert "--mixer swarm" in swarm
    assert "--episodes 5" in swarm
    assert "--episodes" not in plain
    assert all("--prior natural" in line for line in (studied, paper, swarm, plain))
    assert paper.endswith("ac-odm_agent_paper_anchor_0-seed-0.parquet")


def test_a_study_is_collected(commands: tuple[Path, list[str]], collected: Outcome) -> None:
    out = commands[0]
    assert collected.stdout.split() == [str(out)]
    assert "4 finished, 0 to train" in collected.stderr
    assert re.search(r"against uniform, 2 seeds: perplexity [+-]\d+\.\d% ± \d+\.\d, ", collected.stderr)
    assert "to see a difference of 1% from uniform, " in collected.stderr
    runs = [Schedule.read(out.parent / "out.study" / f"ac-odm-seed-{seed}.parquet") for seed in (0, 1)]
    others = [Schedule.read(out.parent / "out.study" / f"uniform-seed-{seed}.parquet") for seed in (0, 1)]
    mean = Schedule.read(out)
    # The mean is of what was learned, without the random weights of warm-up, and the policy is one of the runs'.
    learned = np.stack([run.learned.weights_SK for run in runs])
    np.testing.assert_allclose(mean.weights_SK, learned.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mean.per_domain["weight_sd"], learned.std(axis=0, ddof=1), atol=1e-6)
    evidence = mean.run.evidence
    assert evidence is not None
    assert evidence.policy_seed is not None
    assert mean.policy == runs[evidence.policy_seed].policy is not None
    assert mean.run.seeds == evidence.seeds == (0, 1)
    assert evidence.trained_steps == 4 * STEPS
    assert evidence.corpus == runs[0].info["corpus"]["fingerprint"]
    assert evidence.tokenizer == runs[0].info["tokenizer"]["fingerprint"]
    ends = [
        [np.exp(run.per_domain["validation_loss"][-1].astype(np.float64)).mean() for run in each]
        for each in (runs, others)
    ]
    ours_N, theirs_N = map(np.array, ends)
    expected = 100 * np.mean(ours_N / theirs_N - 1)
    (against,) = evidence.against
    assert (against.baseline, against.difference) == ("uniform", pytest.approx(expected, rel=1e-6))
    assert [curve.mixer for curve in evidence.curves] == ["ac-odm", "uniform"]
    assert evidence.curves[1].values[1][-1] == pytest.approx(ends[1][1], rel=1e-6)


def test_inspect_shows_it_first(commands: tuple[Path, list[str]], collected: Outcome, tmp_path: Path) -> None:
    out = commands[0]
    assert acodm("inspect", out).stdout.startswith("evidence  against uniform, 2 seeds: perplexity ")
    drawn = acodm("inspect", out, "--plot", "evidence")
    assert "1 ac-odm" in drawn.stdout, drawn.stderr
    assert "2 uniform" in drawn.stdout
    facts = json.loads(acodm("inspect", out, "--json").stdout)
    assert facts["evidence"]["against"][0]["seeds"] == 2
    lines = acodm("inspect", out, "--plot", "evidence", "--csv").stdout.splitlines()
    assert lines[0] == "step,tokens,ac-odm,uniform"
    assert lines[-1].startswith(f"{STEPS},{STEPS * 8 * 32},")
    assert acodm("inspect", out, "--plot", "evidence", "--html", tmp_path / "p.html").code == 0
    page = (tmp_path / "p.html").read_text()
    assert '"what":"evidence"' in page
    assert page.count('"band":[[') == 2, "of the weights and of the evidence"
    assert "sd of steps" in acodm("inspect", out).stdout
    # What is composed of the schedule was not measured.
    assert "evidence" not in acodm("inspect", out, "--average").stdout


def test_more_seeds_and_other_settings(
    options: list[object], commands: tuple[Path, list[str]], collected: Outcome
) -> None:
    out = commands[0]
    before = out.read_bytes()
    again = acodm("proxy-train", *options, "--out", out)
    assert (again.code, out.read_bytes()) == (0, before)
    other = acodm("proxy-train", *options, "--batch", 4, "--print-commands", "--out", out)
    assert other.code == 2
    assert "is not of a study with these settings" in other.stderr
    moved = out.rename(out.with_name("moved.parquet"))
    other = acodm("proxy-train", *options, "--batch", 4, "--print-commands", "--out", out)
    assert "batch 8, not 4" in other.stderr
    moved.rename(out)
    more = acodm("proxy-train", *options, "--seeds", "0,1,2", "--print-commands", "--out", out)
    assert (more.code, len(more.stdout.splitlines())) == (0, 6)
    assert out.read_bytes() == before


def test_a_guarded_study_exports_the_best_baseline(
    options: list[object], commands: tuple[Path, list[str]], collected: Outcome
) -> None:
    """No two seeds of a few steps show a difference, so that the guard takes uniform."""
    out = commands[0]
    before, learned = out.read_bytes(), out.parent / "out.study" / "learned.parquet"
    guarded = acodm("proxy-train", *options, "--guard", "--out", out)
    assert guarded.code == 0, guarded.stderr
    assert "this is the schedule of uniform, the best baseline: ac-odm was not shown to be better" in guarded.stderr
    assert str(learned) in guarded.stderr
    np.testing.assert_allclose(Schedule.read(out).weights_SK, 0.25)
    assert "evidence  ac-odm against uniform, 2 seeds" in acodm("inspect", out).stdout
    assert acodm("inspect", learned).stdout.startswith("evidence  against uniform, 2 seeds")
    np.testing.assert_array_equal(Schedule.read(learned).weights_SK != 0.25, True)
    assert acodm("proxy-train", *options, "--out", out).code == 0
    assert out.read_bytes() == before
    assert not learned.exists()


def test_a_baseline_is_not_written_over(proxy: Path) -> None:
    before = proxy.read_bytes()
    refused = acodm("proxy-train", "--seeds", 0, "--against", proxy, "--force", "--out", proxy)
    assert (refused.code, proxy.read_bytes()) == (2, before)
    assert "is what the study writes; give another --out" in refused.stderr


@pytest.mark.slow
def test_an_interrupted_study_ends_in_the_same_file(
    options: list[object], commands: tuple[Path, list[str]], collected: Outcome, tmp_path: Path
) -> None:
    """Its first two runs are finished already, the other two are stopped and go on."""
    out = tmp_path / "out.parquet"
    (tmp_path / "out.study").mkdir()
    for mixer in ("ac-odm", "uniform"):
        shutil.copy(commands[0].parent / "out.study" / f"{mixer}-seed-0.parquet", tmp_path / "out.study")
    study = ["proxy-train", *options, "--jobs", 2, "--out", out]
    process = start_acodm(*study)
    # As soon as the first run is in training.
    while process.poll() is None and not list(tmp_path.glob("out.study/*.run/step-*.pt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 143, said
    assert "2 finished, 2 to train, 2 at a time" in said
    assert "the same command continues" in said
    assert not out.exists()
    assert list(tmp_path.glob("out.study/*.run/step-*.pt"))
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out.study/*.parquet")}
    assert len(finished) >= 2
    again = acodm(*study)
    assert again.code == 0, again.stderr
    assert "continues" in again.stderr
    assert out.read_bytes() == commands[0].read_bytes()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list(tmp_path.glob("out.study/*.run"))


@pytest.mark.slow
def test_a_run_that_fails_is_named(options: list[object], tmp_path: Path) -> None:
    """The reference schedule is of other domains."""
    out = tmp_path / "out.parquet"
    study = ["proxy-train", *options, "--seeds", 0, "--mixer", "natural", "--against", "pile-natural"]
    failed = acodm(*study, "--out", out)
    assert failed.code == 2, failed.stderr
    assert "pile-natural, seed 0 failed: the domains differ" in failed.stderr
    assert (tmp_path / "out.study" / "natural-seed-0.parquet").exists()
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--seeds", "0,0"], "--seeds 0,0; give different whole numbers"),
        (["--seeds", "0,x"], "give different whole numbers"),
        (["--seeds", "0,1", "--seed", 3], "either --seed, for one run, or --seeds"),
        (["--seeds", "0,1", "--resume"], "leave --resume out"),
        (["--seeds", "0,1", "--dry-run"], "--dry-run is for one run"),
        (["--seeds", "0,1", "--guard"], "--guard compares with baselines"),
        (["--against", "uniform"], "give their seeds, for example --seeds 0,1,2"),
        (["--seeds", "0,1", "--against", "unifrom"], "--against unifrom is no mixer (ac-odm, natural"),
        (["--seeds", "0,1", "--against", "uniform,ac-odm"], "ac-odm is in the study already"),
        (["--seeds", "0,1", "--against", "ac-odm:anchor"], "ac-odm:anchor; write what to change as ac-odm:NAME=VALUE"),
        (["--seeds", "0,1", "--against", "odm:agent=paper"], "odm:agent=paper does nothing with mixer odm"),
        (["--seeds", "0,1", "--against", "swarm:episodes=x"], "episodes is a whole number"),
        (["--seeds", "0,1", "--against", "replay"], "name the schedule that has them"),
        (["--seeds", "0,1", "--save-model", "m"], "a study keeps no models"),
        (["--seeds", "0,1", "--out", "out.csv"], "must end in .parquet"),
    ],
)
def test_what_cannot_be_is_said(
    given: list[object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = acodm("proxy-train", *given)
    assert outcome.code == 2
    assert says in outcome.stderr
    assert not list(tmp_path.iterdir())
