"""`--nproc N`: starts N ranks on this machine, as children of this process.

torchrun does the same; this has acodm's own exit codes and errors.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType

from acodm_cli.errors import STOP_SIGNALS, UsageError, ended_by
from acodm_cli.limits import cores_of_this_job

# When a rank has failed, the others have so long to notice and to say why.
GRACE_SECONDS = 15.0
# After a second signal, or when this process is gone, ranks that hang are ended after so long.
HUNG_SECONDS = 45.0
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
# What a process that is to stop with its launcher finds the launcher's number in.
LAUNCHER = "ACODM_LAUNCHER"


def is_a_rank() -> bool:
    """Whether a launcher has started this process as one of several ranks."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def run_ranks(count: int, arguments: list[str]) -> int:
    """Runs `acodm arguments` (without --nproc) in `count` ranks, and passes signals on to them. Returns the exit code
    of the run.

    Raises:
        UsageError: this process is a rank itself.
    """
    if is_a_rank():
        raise UsageError("--nproc starts ranks, and this is one already (WORLD_SIZE is set); leave one of the two out")
    arguments = _without_nproc(arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common[LAUNCHER] = str(os.getpid())
    # torchrun does the same. Ranks that each take all cores would be in each other's way.
    common["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores_of_this_job() // count)))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "acodm_cli", *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # a terminal's Ctrl-C reaches them once, through us
        )
        for rank in range(count)
    ]

    received: list[float] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    previous = {n: signal.signal(n, forward) for n in STOP_SIGNALS}
    try:
        return _wait(ranks, received)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen[bytes]], received: list[float]) -> int:
    """Returns the exit code of the run. received: when signals were passed on."""
    deadline = None
    while any(rank.poll() is None for rank in ranks):
        if deadline is None and any(rank.poll() for rank in ranks):
            deadline = time.monotonic() + GRACE_SECONDS
        elif deadline is None and len(received) > 1:
            deadline = received[1] + HUNG_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            hung = [number for number, rank in enumerate(ranks) if rank.poll() is None]
            print(f"warning: rank {', '.join(map(str, hung))} did not end, and is killed", file=sys.stderr)  # noqa: T201
            codes = [code for rank in ranks if (code := rank.poll())]
            for number in hung:
                ranks[number].kill()
                ranks[number].wait()
            return _exit_code(codes or [-signal.SIGKILL])
        time.sleep(0.05)
    codes = [rank.returncode for rank in ranks]
    for number, code in enumerate(codes):
        if code < 0:
            print(f"error: rank {number} {ended_by(code)}", file=sys.stderr)  # noqa: T201
    return _exit_code(codes)


def _exit_code(codes: list[int]) -> int:
    """Returns 0 if no rank failed. A rank that a signal has ended has a negative code, and is why the others failed; the shell's
    convention is 128 + signal."""
    return 128 - min(codes) if min(codes) < 0 else next((code for code in codes if code), 0)


def _without_nproc(arguments: list[str]) -> list[str]:
    left, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--nproc":
            skip = True
        elif not argument.startswith("--nproc="):
            left.append(argument)
    return left


def end_with_launcher() -> None:
    """Runs in a rank: when the process that started it is killed, the rank is told to stop, and saves; if it hangs then, it is
    ended. Without a launcher of ours, this does nothing."""
    name = os.environ.get(LAUNCHER, "")
    if not name.isdigit():
        return
    launcher = int(name)
    try:
        os.kill(launcher, 0)
    except ProcessLookupError:  # it was killed while this rank started
        sys.exit(128 + signal.SIGTERM)
    if os.getppid() != launcher:  # a process that a rank has started
        return
    if sys.platform == "linux":
        # The rank asks for this itself. Code between fork and exec could wait for ever for a lock of another thread.
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        time.sleep(HUNG_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="launcher").start()
