"""What this process may use of its machine: a Slurm job, a container or a systemd unit may have only some of it.

/proc/self/cgroup -> every level of the group, version 2 or 1 -> the smallest limit
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def cores_of_this_job() -> int:
    """The number of processor cores that this process may use: by affinity and by the quotas of its groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups("cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def memory_of_this_job() -> int | None:
    """The memory in bytes that the groups of this process still leave it, None if they set no limit.

    What the kernel can take back, pages of files above all, does not count as used."""
    left = []
    for folder in _groups("memory"):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        # Version 1 writes a number near 2^63 where there is no limit.
        limit = min((limit for limit in limits if limit is not None and limit < 1 << 60), default=None)
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            left.append(max(0, limit - used + _reclaimable(folder / "memory.stat")))
    return min(left, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Yields the folders of the groups that this process is in, from its own up to the root, in both versions."""
    text = _read(Path("/proc/self/cgroup")) or ""
    for line in text.splitlines():
        number, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if number == "0" and not controllers:
            root = _ROOT
        elif controller in controllers.split(","):
            root = _ROOT / controllers if (_ROOT / controllers).is_dir() else _ROOT / controller
        else:
            continue
        group = root / path.lstrip("/")
        while True:
            # In a container the path may be that of the host, which is not mounted; the root then stands for the group.
            if group.is_dir():
                yield group
            if group == root or root not in group.parents:
                break
            group = group.parent


def _cpu_quota(folder: Path) -> float | None:
    both = (_read(folder / "cpu.max") or "").split()
    quota, period = (
        both if len(both) == 2 else (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
    )
    if not quota or not period or not quota.isdigit() or not period.isdigit() or not int(period):
        return None
    return max(1.0, int(quota) / int(period))


def _reclaimable(path: Path) -> int:
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
