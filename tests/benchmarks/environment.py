"""What a benchmark's result was measured on."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


# Noted when the benchmark starts: what is measured is the code that was imported.
COMMIT = _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")


def describe() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": COMMIT,
        "command": " ".join(["python -m", _module(), *map(_without_folder, sys.argv[1:])]),
    }


def _module() -> str:
    return f"tests.benchmarks.{Path(sys.argv[0]).stem}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.processor()


def _without_folder(argument: str) -> str:
    """Results are shared; where files lie on the machine is not."""
    return Path(argument).name if "/" in argument else argument


def save(name: str, result: dict[str, Any], path: Path | None) -> None:
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"environment": describe(), **result}, indent=1) + "\n")
    print(f"written to {target.name}")
