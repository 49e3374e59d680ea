"""The tracker `trackio` keeps runs in a local database.

The variable TRACKIO_DIR says where the database is, and TRACKIO_PROJECT names the project (default: acodm).
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout

from acodm_cli.runs.trackers.tracker import Tracked, Tracker


class Trackio(Tracker):
    """Writes a run with the record's name; `trackio show` shows it. If the run is resumed, what Trackio holds of steps after
    the checkpoint stays there."""

    package = "trackio"

    def __init__(self, tracked: Tracked) -> None:
        import trackio

        super().__init__(tracked)
        with redirect_stdout(sys.stderr):  # Standard output is for results.
            self.run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "acodm"),
                name=tracked.out.stem,
                config=tracked.info,
                resume="allow" if tracked.resumed else "never",
                embed=False,
            )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def end(self) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            # The run's own `finish` would not do: trackio would finish the run again when the process ends, and say so.
            trackio.finish()
