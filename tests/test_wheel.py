"""The built wheel, installed outside of the checkout, is the whole tool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acodm_cli.schedule.library import reference_schedules

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, CHECKOUT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(site: Path, *command: object) -> str:
    """What a Python program says that finds acodm in the wheel first."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=site, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_all_commands(site: Path, small: list[object], tmp_path: Path) -> None:
    where = run(site, "-c", "import acodm_cli; print(acodm_cli.__file__)")
    assert where.startswith(str(site))
    learned, applied = tmp_path / "learned.parquet", tmp_path / "applied.parquet"
    run(site, "-m", "acodm_cli", "proxy-train", "--steps", 3, "--out", learned, *small)
    run(site, "-m", "acodm_cli", "apply", "--schedule", learned, "--model", "llama-tiny", "--out", applied, *small)
    assert "domain weights" in run(site, "-m", "acodm_cli", "inspect", learned)
    # page.html is a file of the package that is not Python.
    run(site, "-m", "acodm_cli", "inspect", learned, applied, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_wheel_has_the_reference_schedules(site: Path) -> None:
    code = "from acodm_cli.schedule.library import reference_schedules as r; from acodm_cli import Schedule; print([len(Schedule.load(n)) for n in r()], next(iter(r().values())))"
    said = run(site, "-c", code)
    assert said.startswith(str([1] * len(reference_schedules())))
    assert str(site) in said
