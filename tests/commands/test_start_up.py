from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "pandas")


def imported_by(*arguments: object) -> set[str]:
    code = (
        "import sys\nfrom acodm_cli.cli import main\n"
        f"try:\n    main({[str(a) for a in arguments]!r})\nexcept SystemExit as stop:\n    assert stop.code == 0, stop\n"
        "print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["proxy-train", "--help"], ["apply", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    modules = imported_by(*arguments)
    assert not modules & {*HEAVY, "numpy", "pyarrow"}


@pytest.mark.slow
def test_inspect_does_without_torch(proxy: Path) -> None:
    assert not imported_by("inspect", proxy) & {"torch", "transformers", "datasets"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["proxy-train", "--data", "none/such"], ["apply", "--model", "pythia-14m", "--schedule", "none.parquet"]],
)
def test_wrong_places_are_found_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom acodm_cli.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert stop.code in (2, 3), stop\n"
        "print(*sorted(sys.modules), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "none" in done.stderr
    assert not set(done.stdout.split()) & {"torch", "transformers", "datasets"}
