"""Runs the command line as a user does, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from acodm_cli.cli import main

# Typer builds all commands whenever one is called: once per process of a user, and thousands of times in tests.
typer.main.get_command = functools.cache(typer.main.get_command)


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def acodm(*arguments: object) -> Outcome:
    """`acodm …` in this process: same entry point, no start-up time."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    code = stop.value.code
    assert isinstance(code, int)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def start_acodm(*arguments: object) -> subprocess.Popen[str]:
    """`acodm …` as a process of its own, for what signals and imports do."""
    command = [sys.executable, "-m", "acodm_cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: what must still be there after a failure."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
