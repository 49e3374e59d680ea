"""Checkpoints of the full training state: one file each, written atomically."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from acodm_cli.errors import AcodmError

CHECKPOINT_VERSION = 1
KEEP = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write to a temporary name, flush to disk, rename: a reader finds a complete checkpoint or none.

    Raises:
        AcodmError: it could not be written; earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:09d}.pt"
    partial = folder / f".{path.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"version": CHECKPOINT_VERSION, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise AcodmError(f"cannot write the checkpoint {path}: {reason}; earlier checkpoints are kept") from None
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises AcodmError if the file is damaged or of another version."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers do
        reason = str(error).splitlines()[0][:120]
        raise AcodmError(f"checkpoint {path} is damaged ({reason}); remove it to resume from the one before") from None
    if state.get("version") != CHECKPOINT_VERSION:
        raise AcodmError(f"checkpoint {path} has version {state.get('version')!r}, expected {CHECKPOINT_VERSION}")
    return state
