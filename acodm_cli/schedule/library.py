"""Reference schedules that come with acodm: published mixtures, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from acodm_cli.errors import ScheduleError

# In a wheel beside this package's code; in a checkout in schedules/ at its top.
_FOLDERS = (Path(__file__).parents[1] / "reference_schedules", Path(__file__).parents[2] / "schedules")


def reference_schedules() -> dict[str, Path]:
    """Name to file, in order."""
    for folder in _FOLDERS:
        if found := {path.stem: path for path in sorted(folder.glob("*.parquet"))}:
            return found
    return {}


def find_schedule(source: str | Path) -> Path:
    """The file of a path, or of the name of a reference schedule. A file that is there goes before a name.

    Raises:
        ScheduleError: neither.
    """
    path = Path(source)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # no name of a file, too long or with a zero byte
        raise ScheduleError(f"{str(source)[:80]!r}… cannot be a file; give a .parquet file") from None
    known = reference_schedules()
    if str(source) in known:
        return known[str(source)]
    close = difflib.get_close_matches(str(source), known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give a .parquet file, or one of {', '.join(known)}"
    raise ScheduleError(f"there is no schedule {source}; {hint}")
