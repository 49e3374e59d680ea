"""The tracker `jsonl` writes out.jsonl beside the record, with a JSON object per step on a line of its own.

`pandas.read_json("out.jsonl", lines=True)` reads it.
"""

from __future__ import annotations

import json
from pathlib import Path

from acodm_cli.errors import UsageError
from acodm_cli.runs.trackers.tracker import Tracked, Tracker
from acodm_cli.writing import atomic_file, in_short


class JsonLines(Tracker):
    """Writes a line per step and flushes it at once, so that the file can be followed with tail."""

    def __init__(self, tracked: Tracked) -> None:
        super().__init__(tracked)
        path = self.place(tracked.out)
        try:
            if tracked.resumed and path.exists():
                _keep_steps(path, tracked.step)
            self.file = path.open("a" if tracked.resumed else "w", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {in_short(error)}; choose another --out") from None

    @classmethod
    def place(cls, out: Path) -> Path:
        return out.with_suffix(".jsonl")

    @classmethod
    def owns(cls, place: Path) -> bool:
        if not place.is_file():
            return False
        with place.open("rb") as file:
            first = file.readline(1 << 16)
        return not first or (b'"step"' in first and b'"train/loss"' in first)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **numbers}) + "\n")
        self.file.flush()

    def end(self) -> None:
        self.file.close()


def _keep_steps(path: Path, last: int) -> None:
    """Removes the lines of steps after the last one to keep, and a line that was cut."""
    with atomic_file(path) as file, path.open("rb") as before:
        for line in before:
            try:
                if json.loads(line)["step"] <= last:
                    file.write(line.rstrip() + b"\n")
            except (ValueError, TypeError, KeyError):
                continue
