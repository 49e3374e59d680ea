"""The errors that a user can cause or meet, each with a stable exit code.

Every message is one line that says what is wrong and what to do next. Anything else that escapes is a bug
in acodm and keeps its traceback.
"""

import signal

# They ask a run to save itself and stop.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def ended_by(code: int) -> str:
    """Returns, in words, which signal ended a process. code: its exit code as `subprocess` gives it, below 0."""
    why = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{why}"


# Whether this process has joined other ranks; from then on the first rank says what all of them know.
joined = False
# Whether the watch of ranks is about to end this one and says why; then its collectives may fail, which says nothing more.
ending = False


class AcodmError(Exception):
    """The run failed for a known reason."""

    exit_code = 1


class UsageError(AcodmError):
    """An option, path or corpus cannot be used as given."""

    exit_code = 2


class ScheduleError(AcodmError):
    """A schedule file is unreadable, or does not fit the corpus or model."""

    exit_code = 3


class ResourceError(AcodmError):
    """There is not enough memory, or no such device."""

    exit_code = 4


class Interrupted(AcodmError):
    """A signal stopped the run. The message says whether its state was saved.

    The exit code follows the shell's convention: 128 + signal number (130 for SIGINT, 143 for SIGTERM).
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])
