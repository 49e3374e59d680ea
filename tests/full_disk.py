"""Lets the disk become full at every phase of a run, and looks at what is said and lost. `python -m tests.full_disk`

The disk is a tmpfs that holds the token cache, the run folder, the model and the schedule. When something of a phase begins to
be written, the run is stopped for a moment and the disk is made as small as what lies there, plus a little. The run must fail
with one line that says why. Then there is room again, and the run is resumed (or started, where it had not begun): its files
must be those of a run that never lacked room. A disk that is too small from the beginning must be noticed before training.

It needs root, for the mounts.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos import start
from tests.conftest import write_corpus, write_tokenizer

ENOUGH = 256 << 20
# What appears on the disk when a phase begins.
PHASES = {
    "from the beginning": "",
    "token cache": "cache/tokens/.*acodm-*",
    "settings of the run": "a.run",
    "first checkpoint": "a.run/.step-000000002*",
    "second checkpoint": "a.run/.step-000000004*",
    "last checkpoint": "a.run/.step-000000006*",
    "model": ".a.model.acodm-*",
    "schedule": ".a.parquet.acodm-*",
}
ROOMS = (0, 8 << 10, 1 << 20)
TOO_SMALL = (64 << 10, 8 << 20, 48 << 20)


def mount(place: Path, size: int, again: bool = False) -> None:
    how = f"{'remount,' if again else ''}size={max(size, 4096)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)], check=True)


def files(disk: Path) -> dict[str, bytes]:
    """The results, by name: what is neither cache nor begun."""
    return {
        str(path.relative_to(disk)): path.read_bytes()
        for path in sorted(disk.rglob("*"))
        if path.is_file() and "cache" not in path.relative_to(disk).parts
    }


def fill(disk: Path, process: subprocess.Popen[str], appears: str, room: int) -> bool:
    """Takes all room but a little when something appears on the disk. False: the run ended before that."""
    while not list(disk.glob(appears)):
        if process.poll() is not None:
            return False
    process.send_signal(signal.SIGSTOP)
    used = shutil.disk_usage(disk).used
    mount(disk, used + room, again=True)
    process.send_signal(signal.SIGCONT)
    return True


def try_moment(disk: Path, appears: str, room: int, how: list[str], calm: dict[str, bytes]) -> tuple[str, str]:
    """Returns what became of the run, and what it had said."""
    mount(disk, ENOUGH if appears else room)
    try:
        process = start("proxy-train", *how)
        filled = not appears or fill(disk, process, appears, room)
        _, said = process.communicate()
        mount(disk, ENOUGH, again=True)
        lines = [line for line in said.splitlines() if line.startswith(("error", "Traceback"))]
        if not filled or process.returncode == 0:
            return ("as undisturbed" if files(disk) == calm else "DIFFERS"), "(it had room)"
        if process.returncode not in (1, 4) or len(lines) != 1 or not lines[0].startswith("error: "):
            return "NOT ONE LINE", f"exit code {process.returncode}: {said[-300:]}"
        begun = (disk / "a.run" / "run.json").is_file()
        again = start("proxy-train", *(("--resume", "--out", disk / "a.parquet") if begun else how))
        _, then = again.communicate()
        if again.returncode:
            return f"NOT CONTINUED: {then[-300:]}", lines[0]
        same = "as undisturbed" if files(disk) == calm else f"DIFFERS: {sorted(files(disk))}"
        return f"{'resumed' if begun else 'started again'}, {same}", lines[0]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main() -> None:
    failed, tried = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        data, disk = write_corpus(Path(folder) / "corpus"), Path(folder) / "disk"
        disk.mkdir()
        how = ["--data", data, "--tokenizer", write_tokenizer(Path(folder) / "tokenizer.json"), "--device", "cpu"]
        how += ["--seq-len", 32, "--batch", 8, "--steps", 6, "--checkpoint-every", 2, "--validation-sequences", 2]
        how += ["--cache-dir", disk / "cache", "--out", disk / "a.parquet", "--save-model", disk / "a.model"]
        mount(disk, ENOUGH)
        process = start("proxy-train", *how)
        _, said = process.communicate()
        assert process.returncode == 0, said
        calm = files(disk)
        subprocess.run(["umount", str(disk)], check=True)
        for phase, appears in PHASES.items():
            for room in ROOMS if appears else TOO_SMALL:
                then, said = try_moment(disk, appears, room, list(map(str, how)), calm)
                failed, tried = failed + (not then.endswith("as undisturbed")), tried + 1
                print(f"{phase}, {room >> 10} KiB left: {then}\n    {said.replace(folder, '…')}", flush=True)
    print(f"{tried - failed} of {tried} moments held")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
