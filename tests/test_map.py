"""Follows the recipes of acodm_cli/README.md in a copy of the package, and uses what they add."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import acodm_cli
from acodm_cli.schedule.schedule import Schedule
from tests.conftest import DOMAINS, generate_documents

MAP = Path(acodm_cli.__file__).with_name("README.md")
BLOCK = re.compile(r"```python\n# (?P<file>acodm_cli/\S+?\.py)(, in (?P<place>[\w ]+))?\n(?P<text>.*?)```", re.DOTALL)


def follow(block: re.Match[str], folder: Path) -> None:
    """Write a new file, or put lines at the beginning of a table or a class."""
    path, place, text = folder / block["file"], block["place"], block["text"]
    if place is None:
        assert not path.exists()
        path.write_text(text)
        return
    before = path.read_text()
    opening = rf"^{place}\b.*\{{\n" if place.isupper() else rf"^{place}\b.*:\n(    .*\n|\n)*?    PANEL.*\n\n"
    found = re.search(opening, before, re.MULTILINE)
    assert found is not None, block["file"]
    path.write_text(before[: found.end()] + text + ("" if place.isupper() else "\n") + before[found.end() :])


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package that has everything which the map tells how to add."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(MAP.parent, folder / "acodm_cli", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = list(BLOCK.finditer(MAP.read_text()))
    assert len(blocks) == 8
    for block in blocks:
        follow(block, folder)
    return folder


def run(folder: Path, *arguments: object) -> str:
    """What a command of the extended package says."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "acodm_cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_recipes_work(extended: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    for domain in DOMAINS:
        (tmp_path / "corpus" / domain).mkdir(parents=True)
        for number, text in enumerate(generate_documents(domain, 40, 0)):
            (tmp_path / "corpus" / domain / f"{number}.rst").write_text(text)
    out = tmp_path / "a.parquet"
    corpus = ["--data", tmp_path / "corpus", "--tokenizer", tokenizer_file, "--cache-dir", tmp_path / "cache"]
    size = ["--steps", 4, "--seq-len", 32, "--batch", 8, "--device", "cpu", "--label-smoothing", 0.1]
    mixer = ["--mixer", "by-loss", "--mixer-option", "power=2", "--track", "last"]
    run(extended, "proxy-train", *corpus, *size, *mixer, "--out", out)
    schedule = Schedule.load(out)
    assert schedule.info["mixer"] == {"name": "by-loss", "settings": {"power": 2.0, "ema": 0.9}}
    powers_SK = schedule.per_domain["smoothed_loss"] ** 2
    expected_SK = 0.9 * powers_SK / powers_SK.sum(axis=1, keepdims=True) + 0.1 / 4
    assert np.allclose(schedule.weights_SK[1:], expected_SK[:-1], atol=1e-6)
    own = {"smoothed_loss": "domain", "largest_weight": "step"}
    assert {name: per for name, per in schedule.metrics.items() if name in own} == own
    assert out.with_suffix(".last").read_text().startswith("step 4, loss ")
    assert "largest weight" in run(extended, "inspect", out, "--plot", "largest_weight")
    assert "The power of the losses." in run(extended, "proxy-train", *mixer[:2], "--mixer-option", "help")
    run(extended, "inspect", out, "--export", "tsv", "--out", tmp_path / "tsv")
    assert (tmp_path / "tsv" / "mixture.tsv").read_text().startswith("0\t0.")
    help_text = run(extended, "proxy-train", "--help")
    assert "--label-smoothing" in help_text
    assert "The share of the probability" in help_text


def test_the_map_names_what_is_there() -> None:
    text = MAP.read_text()
    for name in re.findall(r"^    (\w+(?:\.py|/)) ", text, re.MULTILINE):
        assert (MAP.parent / name).exists(), name
    for name in re.findall(r"\| `(\w+/[\w/]+\.py)` \|", text):
        assert (MAP.parent / name).is_file(), name


def test_the_python_example(corpus: object, tmp_path: Path) -> None:
    """It runs as printed, on a corpus that is there already."""
    example = re.search(r"From Python:\n\n((    .*\n)+)", MAP.read_text())
    assert example is not None
    code = "\n".join(line[4:] for line in example[1].splitlines())
    code = code.replace("steps=20))", "steps=20, batch=4, seq_len=32, device='cpu'), corpus=corpus, warn=print)")
    found: dict[str, object] = {"corpus": corpus, "path": tmp_path / "a.parquet"}
    exec(code, found)
    assert len(found["losses"]) == 20  # type: ignore[arg-type]
    assert len(Schedule.load(tmp_path / "a.parquet")) == 20
