"""All trackers by name: the places where a run's numbers can go while it trains. To add a tracker, add a file and one
line here.

An entry is "module:Class" of a `tracker.Tracker`. The module is imported only when the tracker is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import in_short

if TYPE_CHECKING:
    from acodm_cli.runs.trackers.tracker import Tracked, Tracker

TRACKERS = {
    "jsonl": "acodm_cli.runs.trackers.jsonl:JsonLines",
    "tensorboard": "acodm_cli.runs.trackers.tensorboard:TensorBoard",
    "trackio": "acodm_cli.runs.trackers.trackio:Trackio",
    "wandb": "acodm_cli.runs.trackers.wandb:WeightsAndBiases",
}


def check_trackers(names: Iterable[str], out: Path, force: bool) -> None:
    """Checks that a run may use these trackers. force: whether what an earlier run has written may be replaced.

    Raises:
        UsageError: a tracker's package is not installed, or there is already something in the place where it writes.
    """
    for name in names:
        kind: type[Tracker] = resolve_name(TRACKERS[name])
        if kind.package is not None and find_spec(kind.package) is None:
            raise UsageError(f"--track {name} needs the package {kind.package}; pip install 'acodm[{name}]'")
        place = kind.place(out)
        if place is None or not place.exists():
            continue
        if not kind.owns(place):
            raise UsageError(f"{place} was not written by --track {name}; give another --out")
        if not force:
            raise UsageError(f"{place} exists; use --force to replace it, or another --out")


def make_tracker(name: str, tracked: Tracked) -> Tracker:
    """Makes the tracker of a name, for a run.

    Raises:
        UsageError: the tracker cannot begin, for example because it wants a login.
    """
    kind: type[Tracker] = resolve_name(TRACKERS[name])
    try:
        return kind(tracked)
    except AcodmError:
        raise
    except Exception as error:  # Whatever a tracker's own package raises.
        raise UsageError(f"--track {name} cannot begin: {in_short(error)}; mend it, or give --track none") from None
