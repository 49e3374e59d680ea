"""Checkpoints of the full training state: one file each, written atomically, with the hash of its content in its name.

step-000000300-1f3a….pt
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch

from acodm_cli.errors import AcodmError

CHECKPOINT_VERSION = 2
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write to a temporary name, flush to disk, rename: a reader finds a complete checkpoint or none. Then all but this one and the
    `keep` - 1 before it are removed: one of a later step was damaged, and passed over when the run was resumed.

    Raises:
        AcodmError: it could not be written; earlier checkpoints are untouched.
    """
    partial = folder / f".step-{step:09d}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"version": CHECKPOINT_VERSION, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"step-{step:09d}-{_content_hash(partial)}.pt"
        partial.rename(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise AcodmError(f"cannot write a checkpoint in {folder}: {reason}; earlier checkpoints are kept") from None
    found = checkpoints(folder)
    end = found.index(path) + 1
    for other in (*found[: max(0, end - keep)], *found[end:]):
        other.unlink()
    return path


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_intact(path: Path) -> bool:
    """Whether its content is what was written."""
    name = _NAME.fullmatch(path.name)
    assert name is not None
    try:
        return _content_hash(path) == name[2]
    except OSError:
        return False


def load_checkpoint(path: Path, mapped: bool) -> dict[str, Any]:
    """mapped: leave tensors in the file until they are used; each of many ranks takes but its share of them.

    Raises:
        AcodmError: it cannot be read, or is of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises whatever its parsers do
        reason = str(error).splitlines()[0][:120]
        raise AcodmError(f"checkpoint {path} cannot be read ({reason}); start over with --force") from None
    if state.get("version") != CHECKPOINT_VERSION:
        raise AcodmError(f"checkpoint {path} has version {state.get('version')!r}, expected {CHECKPOINT_VERSION}")
    return state
