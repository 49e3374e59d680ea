"""Ends a run whose ranks wait for each other without end, and says which rank hangs and where.

Collective operations only know that somebody is missing, and their own time-outs must be long enough for the tokenising
of a corpus. So each rank has a thread that looks at its clock. When a step takes too long, each thread tells the others
where its rank is, through the store by which the ranks have found each other; a rank that tells nothing is the one that
hangs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from torch import distributed

from acodm_cli import errors
from acodm_cli.engine.distributed import Ranks

# Clocks and pauses differ between ranks; so long each waits for what the others have to tell.
_LISTEN_SECONDS = 5.0
# The store may lie in the rank that hangs.
_ANSWER_SECONDS = 10.0
_PACKAGE = Path(__file__).parents[1]


class Watch:
    """Watches a loop whose rounds need all ranks.

        with Watch(ranks, seconds) as watch:
            for ...:
                watch.round_ended()

    The first round is not watched, because it compiles. Without other ranks, this does nothing.
    """

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        """seconds: how long a round may take."""
        self.ranks, self.seconds = ranks, seconds
        self.rounds = 0
        self._since: float | None = None
        self._over = threading.Event()
        self._main = threading.get_ident()

    def __enter__(self) -> Watch:
        if self.ranks.store is not None:
            # The main thread may be inside the store when this one needs it.
            self._store = distributed.PrefixStore("acodm", self.ranks.store.clone())  # type: ignore[attr-defined]
            threading.Thread(target=self._look, daemon=True, name="watch").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()

    def round_ended(self) -> None:
        """Tells that all is well."""
        self.rounds += 1
        self._since = time.monotonic()

    def _look(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if self._since is not None and time.monotonic() - self._since > self.seconds:
                errors.ending = True
                told: dict[int, str] = {}
                asking = threading.Thread(target=self._ask, args=(told,), daemon=True)
                asking.start()
                asking.join(_LISTEN_SECONDS + _ANSWER_SECONDS)
                if self._over.is_set() or time.monotonic() - self._since <= self.seconds:
                    errors.ending = False
                    continue  # it was only slow
                self._end(told)

    def _ask(self, told: dict[int, str]) -> None:
        """Tells where this rank is, and collects what others tell."""
        me = self.ranks.rank
        where = f"is in {self._place()} (process {os.getpid()} on {os.uname().nodename})"
        # A round that was only slow may be followed by one that hangs.
        self._store.set(f"{self.rounds}.{me}", where)
        time.sleep(_LISTEN_SECONDS)
        for rank in range(self.ranks.world_size):
            if self._store.check([f"{self.rounds}.{rank}"]):
                told[rank] = self._store.get(f"{self.rounds}.{rank}").decode()
        told.setdefault(me, where)

    def _place(self) -> str:
        """Returns the innermost line of acodm that the main thread is in."""
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(_PACKAGE):
                return f"{frame.f_code.co_name} of {path.relative_to(_PACKAGE)}, line {frame.f_lineno}"
            frame = frame.f_back
        return "an unknown place"

    def _end(self, told: dict[int, str]) -> None:
        silent = [rank for rank in range(self.ranks.world_size) if rank not in told] if told else [0]
        if self.ranks.rank == min(told, default=self.ranks.rank):
            says = [f"rank {rank} {where}" for rank, where in sorted(told.items())][:8]
            says = [f"rank {rank} does not answer" for rank in silent[:8]] + says
            sys.stderr.write(
                f"error: no step has ended for {self.seconds / 60:.3g} minutes: {'; '.join(says)}. Look at that rank's "
                "machine, and continue with --resume (--rank-timeout gives more minutes)\n"
            )
            sys.stderr.flush()
        else:
            time.sleep(_LISTEN_SECONDS)  # the end of this rank would end the one that speaks
        os._exit(1)
