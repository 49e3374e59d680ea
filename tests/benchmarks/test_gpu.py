"""The one command for a GPU, in its tiny form on a CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.gpu import Part, carried_out


def measured(out: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Runs the command. Returns its exit code, what it has found of each part, and its table."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--device", "cpu", "--out", str(out), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return done.returncode, json.loads(out.read_text())["parts"], done.stdout + done.stderr


def is_alive(status: Path) -> bool:
    """Whether a process is there, and no zombie. status: its file below /proc."""
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_part_runs(tmp_path: Path) -> None:
    code, found, said = measured(tmp_path / "gpu.json")
    assert code == 0, said
    of_model = [f"{name} pythia-14m" for name in ("overhead", "throughput", "memory")]
    assert list(found) == ["correctness", *of_model, "commands"]
    assert all(each.keys() == {"seconds", "result"} for each in found.values())
    correctness, overhead, throughput, memory, commands = (each["result"] for each in found.values())
    assert correctness["situations"].keys() == {"fp32", "micro-batches", "bf16", "exact"}
    for name, situation in correctness["situations"].items():
        assert situation["right"], name
        losses = situation["largest_difference"]["train_loss"]
        assert losses <= (3e-2 if name == "bf16" else 1e-4)
        assert name not in ("fp32", "exact") or losses == 0  # the same device twice
    assert [row["num_domains"] for row in overhead["time"]] == [13]
    assert overhead["time"][0]["time_ratio"] > 0
    assert overhead["memory_ratio"] > 0.9
    assert throughput["tokens_per_second"].keys() == {"ours", "Trainer", "by hand"}
    assert all(rate > 0 for rate in throughput["tokens_per_second"].values())
    assert 0 < memory["predicted_mib"] < math.inf
    assert memory["measured_mib"] > 50
    assert commands["proxy-train"]["right"]
    assert commands["apply"]["right"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_part_survives_the_failure_of_another(tmp_path: Path) -> None:
    """Trainer refuses an accelerate that is as old as the one here says it is."""
    (tmp_path / "accelerate-0.1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: accelerate\nVersion: 0.1.0\n"
    (tmp_path / "accelerate-0.1.0.dist-info" / "METADATA").write_text(metadata)
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    code, found, said = measured(tmp_path / "gpu.json", "--only", "throughput", "memory", PYTHONPATH=path)
    assert code == 1
    assert found["throughput pythia-14m"]["failed"] == "exit code 1"
    assert "accelerate" in found["throughput pythia-14m"]["said"]
    assert found["memory pythia-14m"]["result"]["predicted_mib"] > 0
    assert "throughput pythia-14m    FAILED: exit code 1" in said
    assert "memory pythia-14m        predicted" in said


def test_a_part_that_takes_too_long_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import subprocess; child = subprocess.Popen(['sleep', '100']); print(child.pid, flush=True); child.wait()"
    )
    (tmp_path / "endless.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    found = carried_out(Part("endless", "endless", [], seconds=5), tmp_path / "out.json")
    assert found["failed"] == "not done in 5 s"
    status = Path("/proc") / found["said"].strip() / "status"
    # A process that is killed closes its files some moments before it is gone.
    deadline = time.monotonic() + 20
    while is_alive(status) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(status)
