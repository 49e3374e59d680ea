"""The cores and the memory of a job, in made-up control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acodm_cli import limits


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of groups, and a process that is in slice/job of it."""
    read = limits._read
    membership = "0::/slice/job\n5:memory:/old/job\n4:cpu,cpuacct:/old/job\n"
    monkeypatch.setattr(limits, "_ROOT", tmp_path)
    monkeypatch.setattr(limits, "_read", lambda path: membership if path.name == "cgroup" else read(path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits(groups: Path) -> None:
    assert limits.cores_of_this_job() == 16
    assert limits.memory_of_this_job() is None


def test_the_limit_of_any_level_counts(groups: Path) -> None:
    put(groups / "slice" / "job" / "memory.max", "max")
    put(groups / "slice" / "job" / "memory.current", "5000")
    put(groups / "slice" / "memory.max", "8000")
    put(groups / "slice" / "memory.current", "6000")
    put(groups / "slice" / "memory.stat", "anon 1\ninactive_file 500\n")
    put(groups / "slice" / "cpu.max", "250000 100000")
    put(groups / "slice" / "job" / "cpu.max", "max 100000")
    assert limits.memory_of_this_job() == 8000 - 6000 + 500
    assert limits.cores_of_this_job() == 2


def test_groups_of_version_one(groups: Path) -> None:
    put(groups / "memory" / "old" / "job" / "memory.limit_in_bytes", "9000")
    put(groups / "memory" / "old" / "job" / "memory.usage_in_bytes", "4000")
    put(groups / "memory" / "memory.limit_in_bytes", str((1 << 63) - 4096))
    put(groups / "memory" / "memory.usage_in_bytes", "1")
    put(groups / "cpu" / "old" / "job" / "cpu.cfs_quota_us", "300000")
    put(groups / "cpu" / "old" / "job" / "cpu.cfs_period_us", "100000")
    assert limits.memory_of_this_job() == 5000
    assert limits.cores_of_this_job() == 3


def test_a_container_whose_path_is_the_hosts(groups: Path) -> None:
    """Only the root of the groups is mounted: it is the container's own."""
    put(groups / "memory.max", "7000")
    put(groups / "memory.current", "1000")
    assert limits.memory_of_this_job() == 6000
