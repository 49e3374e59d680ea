"""Cuts the power at many moments of a run, and looks at what is left on the disk. `python -m tests.power_loss --moments 20`

The run writes to an ext4 file system in an image. At every call that makes, renames, syncs or removes something, strace stops
the run, and a copy of the image is what a power cut would leave: what was not flushed is not in it. The copy is mounted,
which replays its journal. There must be an intact checkpoint to resume from, or the complete model and schedule.

It needs root, strace, and loop devices.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors.numpy import load_file

from acodm_cli.errors import AcodmError
from acodm_cli.runs.folder import RunFolder, is_intact
from acodm_cli.schedule.schedule import Schedule
from tests.conftest import write_corpus, write_tokenizer

CALLS = "fsync,rename,renameat2,unlink,unlinkat,rmdir,mkdir"
STEPS = 4


def what_is_left(disk: Path) -> str:
    """`complete`, `resumable`, `not begun`, or what is lost."""
    out, folder = disk / "a.parquet", RunFolder(disk / "a.parquet")
    checkpoints = [path for path in folder.checkpoints() if is_intact(path)]
    if checkpoints:
        return "resumable"
    model = disk / "model" / "model.safetensors"
    try:
        if out.exists() and len(Schedule.read(out)) == STEPS and load_file(model):
            return "complete"
    except (AcodmError, OSError, ValueError) as error:
        return f"LOST: {error}"
    if folder.checkpoints():
        return "LOST: only damaged checkpoints"
    return "LOST: neither" if out.exists() or model.exists() else "not begun"


def mounted(image: Path, place: Path) -> None:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)


def unmounted(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


def after_a_cut(image: Path, work: Path) -> str:
    """What is left if the power goes now."""
    shutil.copyfile(image, work / "cut.img")
    mounted(work / "cut.img", work / "seen")
    left = what_is_left(work / "seen")
    unmounted(work / "seen")
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="how many of the last moments are looked at")
    moments = parser.parse_args().moments
    work = Path(tempfile.mkdtemp(prefix="power-loss-"))
    image, disk = work / "disk.img", work / "disk"
    with image.open("wb") as file:
        file.truncate(160 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mounted(image, disk)
    write_corpus(work / "corpus", documents=40)
    write_tokenizer(work / "tokenizer.json")
    run = [
        sys.executable, "-m", "acodm_cli", "proxy-train", "--model", "pythia-14m", "--steps", STEPS, "--checkpoint-every", 2,
        "--data", work / "corpus", "--tokenizer", work / "tokenizer.json", "--cache-dir", work / "cache", "--seq-len", 32,
        "--batch", 8, "--device", "cpu", "--save-model", disk / "model", "--out", disk / "a.parquet",
    ]  # fmt: skip
    log = work / "calls.log"
    subprocess.run([*map(str, run), "--dry-run"], check=True, capture_output=True)
    strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        str(log),
        "-e",
        f"trace={CALLS}",
        "-e",
        f"inject={CALLS}:signal=SIGSTOP:when=1+",
    ]
    process = subprocess.Popen([*strace, *map(str, run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: list[tuple[str, str]] = []
    handled = 0
    while process.poll() is None:
        lines = log.read_text().splitlines() if log.exists() else []
        stops = [number for number, line in enumerate(lines) if "--- SIGSTOP {" in line]
        if len(stops) == handled:
            time.sleep(0.003)
            continue
        handled = len(stops)
        pid, _, call = lines[stops[-1] - 1].partition(" ")
        if (disk / "a.run").exists() or (disk / "a.parquet").exists():
            time.sleep(0.02)
            for flushed in (False, True):  # the disk may have been ahead of what was asked for
                if flushed:
                    os.sync()
                found.append((f"{'flushed  ' if flushed else ''}{call.strip()[:90]}", after_a_cut(image, work)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGCONT)
    os.sync()
    found.append(("the end", after_a_cut(image, work)))
    unmounted(disk)
    assert process.returncode == 0, process.returncode
    for call_, left in found[-moments:]:
        print(f"{left:12}  {call_}")
    print(
        dict(Counter(left.split(":")[0] for _, left in found[-moments:])),
        "of the last",
        min(moments, len(found)),
        "moments of",
        len(found),
    )
    shutil.rmtree(work)
    sys.exit(any(left.startswith("LOST") for _, left in found))


if __name__ == "__main__":
    main()
