"""Writes the checkpoints of a run while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from acodm_cli.runs.folder import RunFolder, check_plain


class CheckpointWriter:
    """A thread that writes checkpoints into a folder, one at a time.

        with CheckpointWriter(folder, saved, abandoned) as writer:
            writer.wait()
            writer.begin(step, state, keep)

    The end of the block waits for a checkpoint that is being written, however the block ends.
    """

    def __init__(self, folder: RunFolder, saved: int, abandoned: Callable[[], bool]) -> None:
        """saved: the step of the newest checkpoint that is there, 0 if there is none. abandoned: tells whether to give up what
        is being written."""
        self.saved = saved
        self._folder, self._abandoned = folder, abandoned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; `wait` tells why."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, if there is one.

        Raises:
            AcodmError: it could not be written; earlier ones are untouched.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def begin(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Begins to write a state, which must not change before `wait` has returned. keep: as of `RunFolder.save_checkpoint`."""
        assert self._writing is None, "the checkpoint before has to be waited for"
        check_plain(state, "state")
        self._writing = self._thread.submit(self._write, step, state, keep)

    def _write(self, step: int, state: dict[str, Any], keep: int) -> None:
        self._folder.save_checkpoint(step, state, keep, self._abandoned)
        self.saved = step
