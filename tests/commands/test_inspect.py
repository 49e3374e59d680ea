from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acodm_cli import Schedule
from acodm_cli.cli import main
from tests.command_line import acodm
from tests.schedule.test_schedule import make_schedule


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two runs of the same domains in another order."""
    one, other = make_schedule(40), make_schedule(20).in_order_of(["code", "books", "web"])
    paths = [tmp_path / "one.parquet", tmp_path / "other.parquet"]
    one.write(paths[0])
    replace(other, info=other.info | {"seed": 1}).write(paths[1])
    return [str(path) for path in paths]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def in_terminal(width: int, *arguments: str, **environment: str) -> str:
    """What a terminal of this width is sent."""
    variables = {"COLUMNS": str(width), "TERM": "xterm-256color", "COLORTERM": "truecolor", "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-m", "acodm_cli", "inspect", *arguments],
        env=variables | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("plot", ["weights", "loss", "reward", "energy", "validation", "entropy"])
def test_no_line_is_wider_than_the_terminal(
    files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, plot: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in (files[:1], files):
        code, out, _ = run(capsys, *arguments, "--plot", plot)
        assert code == 0
        named = [line for line in out.splitlines() if not line.startswith(("schedule", "L1", "KL"))]
        assert max(map(len, named)) <= width
        assert all(name in out for name in ("web", "code", "books"))


def test_colour_only_where_it_is_wanted(files: list[str]) -> None:
    assert "\x1b[" not in in_terminal(80, files[0])
    assert "\x1b[38;2;" in in_terminal(80, files[0], FORCE_COLOR="1")
    assert "\x1b[38;2;" not in in_terminal(80, files[0], FORCE_COLOR="1", NO_COLOR="1")
    assert "AAA" in in_terminal(80, files[0])


def test_22_domains_keep_their_names_at_80_columns() -> None:
    out = in_terminal(80, "pile-natural")
    assert all(name in out for name in Schedule.load("pile-natural").domains)
    both = in_terminal(80, "pile-natural", "pile-odm-1b-mean")
    assert "from pile-natural: mean 0." in both


def test_json_of_several_tells_their_distance(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, *files, "--json")
    assert "Infinity" not in run(capsys, "pile-regmix-1b", files[0], "--json")[1]
    one, other = json.loads(out)
    assert [domain["name"] for domain in one["domains"]] == ["web", "code", "books"]
    assert "distance_to_first" not in one
    assert 0 < other["distance_to_first"]["l1"]["mean"] < 2
    weights_SK = make_schedule(40).weights_SK
    assert one["domains"][1]["mean"] == pytest.approx(weights_SK[:, 1].mean(), rel=1e-6)


def test_csv_of_a_part(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, files[0], "--csv", "--steps", "11:20", "--every", "5", "--domains", "CO")
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["step", "tokens", "code"]
    assert [row[0] for row in rows[1:]] == ["15", "20"]
    assert float(rows[1][2]) == pytest.approx(make_schedule(40).weights_SK[10:15, 1].mean(), rel=1e-5)


def test_where_repetition_sets_in(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of 4 sequences a step there are 2 in web, which is seen 80 times, 20 in code, 8 times, and many in books."""
    path, whole = str(tmp_path / "a.parquet"), make_schedule(40)
    sizes = {"web": 2, "code": 20, "books": 1000}
    replace(whole, info=whole.info | {"corpus": {"sequences": sizes}}).write(path)
    _, out, _ = run(capsys, path)
    said = "repeated  web past 4 epochs at step 3 and 16 epochs at step 9; code past 4 epochs at step 21; what"
    assert said in out
    assert "**80.00" in out
    assert " *8.00" in out
    assert " 0.16" in out
    _, out, _ = run(capsys, path, "--json")
    steps = [(each["beyond_4_epochs_at"], each["beyond_16_epochs_at"]) for each in json.loads(out)["domains"]]
    assert steps == [(3, 9), (21, None), (None, None)]
    _, out, _ = run(capsys, path, "--plot", "epochs", "--csv", "--steps", ":2")
    assert out.splitlines() == ["step,tokens,web,code,books", "1,192,2,0.2,0.004", "2,384,4,0.4,0.008"]
    assert "repetition by domain" in run(capsys, path, "--plot", "epochs")[1]
    whole.write(tmp_path / "unknown.parquet")
    code, _, err = run(capsys, str(tmp_path / "unknown.parquet"), "--plot", "epochs")
    assert (code, "it does not know the sizes of its domains" in err) == (2, True)


def test_plain_is_tab_separated(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, files[0], "--plain", "--domains", "books,web")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[1] for line in lines] == ["domain", "books", "web"]
    assert len({len(line) for line in lines}) == 1


def test_merge_writes_a_schedule_that_can_be_applied(files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    merged = str(tmp_path / "merged.parquet")
    code, out, _ = run(capsys, *files, "--merge", "--out", merged)
    assert (code, out.strip()) == (0, merged)
    mean = Schedule.load(merged)
    assert mean.info["seeds"] == [0, 1]
    np.testing.assert_allclose(mean.weights_SK.sum(axis=1), 1, rtol=1e-6)
    code, _, err = run(capsys, *files, "--merge", "--out", merged)
    assert (code, "exists" in err) == (2, True)
    assert "sd of steps" in run(capsys, *files, "--merge")[1]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_pictures(files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, ending: str) -> None:
    beginnings = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for number, arguments in enumerate(
        ([files[0]], files, [*files, "--merge"], [*files, "--plot", "loss"], ["pile-natural"])
    ):
        path = tmp_path / f"{number}{ending}"
        code, out, _ = run(capsys, *arguments, "--image", str(path))
        assert (code, out.strip()) == (0, str(path))
        assert path.read_bytes().startswith(beginnings[ending])


def test_a_page(files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert run(capsys, *files, "--html", str(path))[:2] == (0, f"{path}\n")
    text = path.read_text()
    assert text.lower().startswith("<!doctype html>")
    assert "one and other" in text


def test_export_writes_files_and_says_what_becomes_of_the_weights(
    files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = ["--target-steps", "1000", "--target-batch", "64", "--target-seq-len", "128", "--stages", "3"]
    code, out, err = run(capsys, files[0], "--export", "levanter", "--out", str(tmp_path / "to"), *target)
    assert code == 0
    assert out.strip() == str(tmp_path / "to" / "levanter.yaml")
    assert "rounding" in err
    assert "nats from the schedule" in err
    code, _, err = run(capsys, files[0], "--export", "levanter", "--out", str(tmp_path / "to"), *target)
    assert (code, "--force" in err) == (2, True)


def test_a_link_that_leads_nowhere_is_not_followed(
    files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, options in (
        ("levanter.yaml", ["--export", "levanter", "--out", str(tmp_path)]),
        ("p.html", ["--html", str(tmp_path / "p.html")]),
    ):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        target = (
            ["--target-steps", "1000", "--target-batch", "64", "--target-seq-len", "128"]
            if "--export" in options
            else []
        )
        code, _, err = run(capsys, files[0], *options, *target)
        assert (code, "exists; " in err) == (2, True), err
        assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "a:b"], "is not FIRST:LAST"),
        (["--steps", "90:"], "no steps in that range"),
        (["--domains", "w,x"], "--domains x is not one domain"),
        (["--json", "--csv"], "one of --json, --csv and --plain"),
        (["--merge"], "--merge takes several"),
        (["--average", "--every", "5"], "without --every"),
        (["--domains", "web", "--out", "x.parquet"], "has all domains"),
        (["--export", "json", "--out", "x", "--json"], "without --json"),
        (["--export", "json"], "with --out"),
        (["--export", "json", "--out", "x"], "--target-steps"),
        (["--image", "plot.gif"], "must be one of .png"),
        (["--image", "no/such/folder/plot.png"], "cannot write"),
        (["--html", "no/such/folder/page.html"], "cannot write"),
    ],
)
def test_mistakes_get_one_line(files: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:  # fmt: skip
    code, out, err = run(capsys, files[0], *arguments)
    assert code == 2
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("plot", ["weights", "loss"])
def test_hostile_names(capsys: pytest.CaptureFixture[str], tmp_path: Path, plot: str) -> None:
    names = ["$\\frac$", "\x1b[31mred", "x" * 3000]
    path = tmp_path / "hostile.parquet"
    replace(make_schedule(30), domains=names).write(path)
    for arguments in ([], ["--plain"], ["--csv"], ["--image", str(tmp_path / "hostile.png")], ["--average"]):
        code, out, err = run(
            capsys, str(path), "--plot", plot if "--average" not in arguments else "weights", *arguments
        )
        assert (code, err) == (0, "")
        assert "\x1b" not in out


def test_a_domain_that_was_never_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    whole = make_schedule(30)
    loss_SK, weight_SK = whole.per_domain["loss"].copy(), np.tile([0.0, 0.4, 0.6], (30, 1)).astype(np.float32)
    loss_SK[:, 0] = np.nan
    path = tmp_path / "never.parquet"
    replace(whole, per_domain=whole.per_domain | {"loss": loss_SK, "weight": weight_SK}).write(path)
    assert run(capsys, str(path), "--plot", "loss")[0] == 0
    code, _, err = run(capsys, str(path), "--plot", "loss", "--domains", "web")
    assert (code, "no loss was recorded" in err) == (2, True)
    assert run(capsys, str(path), "--average", "--domains", "web")[0] == 0


@pytest.mark.parametrize("width", [24, 40, 60])
def test_narrow_terminals_cut_no_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run(capsys, "pile-natural")
    assert "18.11%" in out
    assert "0.14%" in out


def test_a_constant_schedule_is_exported_as_one_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = ["--target-steps", "1000", "--target-batch", "512", "--target-seq-len", "2048"]
    code, out, err = run(capsys, "pile-natural", "--export", "megatron", "--out", str(tmp_path), *target)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "0.00000 nats" in err
    assert "-0.0" not in err


def test_what_was_not_recorded_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "pile-natural", "--plot", "loss")
    assert code == 2
    assert "no loss to plot" in err


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--csv"], ["--json"]])
def test_output_that_ends_early_and_disks_that_are_full(how: list[str], proxy: Path) -> None:
    command = [sys.executable, "-m", "acodm_cli", "inspect", str(proxy), *how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")
    with Path("/dev/full").open("wb") as full:
        outcome = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert outcome.returncode == 1
    assert outcome.stderr == "error: the output cannot be written: No space left on device; make room where it goes\n"


@pytest.mark.slow
def test_any_encoding_of_the_output(proxy: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "acodm_cli", "inspect", str(proxy)]
    outcome = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.isascii()


def test_control_characters_are_shown_and_not_obeyed() -> None:
    outcome = acodm("inspect", "no\rsuch\x1b[31m.parquet")
    assert outcome.code == 3
    assert "no\\rsuch\\x1b[31m.parquet" in outcome.stderr
