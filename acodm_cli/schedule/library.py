"""Reference schedules that come with acodm: published mixtures, found by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from acodm_cli.errors import ScheduleError

# The file in a run's folder that holds what the run has recorded so far.
RECORD = "record.parquet"
# A wheel has them beside this package's code, a checkout in the folder schedules/ at its top.
_FOLDERS = (Path(__file__).parents[1] / "reference_schedules", Path(__file__).parents[2] / "schedules")


def reference_schedules() -> dict[str, Path]:
    """Returns the reference schedules in order: name to file."""
    for folder in _FOLDERS:
        if found := {path.stem: path for path in sorted(folder.glob("*.parquet"))}:
            return found
    return {}


def find_schedule(source: str | Path) -> Path:
    """Returns the file of a schedule.

    source: a path, the folder of a run that is still going (out.run), or the name of a reference schedule. A file of
    that name goes before a reference schedule.

    Raises:
        ScheduleError: the source is none of these, or the run has recorded nothing yet.
    """
    path = Path(source)
    try:
        if path.is_file():
            return path
        if path.is_dir() and path.suffix == ".run":
            if (path / RECORD).is_file():
                return path / RECORD
            raise ScheduleError(f"the run of {path} has recorded nothing yet; look again in a moment")
        if path.suffix == ".run":
            raise ScheduleError(
                f"there is no run in {path}; it has ended (see {path.with_suffix('.parquet')}) or has not begun"
            )
    except (OSError, ValueError):  # not a possible file name: too long, or with a zero byte
        raise ScheduleError(f"{str(source)[:80]!r}… cannot be a file; give a .parquet, .csv or .json file") from None
    known = reference_schedules()
    if str(source) in known:
        return known[str(source)]
    close = difflib.get_close_matches(str(source), known, n=1)
    hint = (
        f"did you mean {close[0]}?" if close else f"give a .parquet, .csv or .json file, or one of {', '.join(known)}"
    )
    raise ScheduleError(f"there is no schedule {source}; {hint}")
