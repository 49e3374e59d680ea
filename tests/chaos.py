"""Kills a run with SIGKILL again and again, at random moments and in the middle of writes, and resumes it each time.

    python -m tests.chaos --command proxy-train --kills 50
    python -m tests.chaos --command apply --kills 50
    python -m tests.chaos --nproc 2 --kills 20
    python -m tests.chaos --moments checkpoint --kills 20

With several processes, the launcher or one of the ranks is killed. At the end its files must be those of a run that nobody disturbed, bit for bit, and nothing else may lie about. A moment is: some
time after a step; a checkpoint being written; the model or the schedule being written, when all steps are done.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import write_corpus, write_tokenizer

MOMENTS = ("step", "checkpoint", "end")
LONGEST_LIFE = 0.6


def prepare(folder: Path) -> list[str]:
    """A small corpus and tokenizer; options of a run that takes seconds."""
    data = write_corpus(folder / "corpus")
    tokenizer = write_tokenizer(folder / "tokenizer.json")
    corpus = ["--data", str(data), "--tokenizer", str(tokenizer), "--cache-dir", str(folder / "cache")]
    return [*corpus, "--seq-len", "32", "--batch", "8", "--validation-sequences", "2", "--device", "cpu"]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "acodm_cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def finish(*arguments: object) -> None:
    process = start(*arguments)
    _, said = process.communicate()
    assert process.returncode == 0, said


def is_written(folder: Path, moment: str) -> bool:
    """Whether something of that kind is being written now."""
    if moment == "checkpoint":
        return any((folder / "a.run").glob(".step-*.acodm-*"))
    return any(folder.glob(".a.*"))


def one_of(process: subprocess.Popen[str], generator: random.Random) -> int:
    """The process or one of its ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return generator.choice([process.pid, *map(int, children)])


def kill_once(process: subprocess.Popen[str], folder: Path, moment: str, generator: random.Random) -> bool:
    """Kill the process, or one of its ranks, at the moment. False: it was done before that."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("step "):
            break
        if line.startswith("resumed at") and moment == "end":
            break
    if moment == "step":
        time.sleep(generator.uniform(0, LONGEST_LIFE))
    else:
        while process.poll() is None and not is_written(folder, moment):
            time.sleep(0.001)
    victim = None
    with contextlib.suppress(OSError):
        victim = one_of(process, generator)
        os.kill(victim, signal.SIGKILL)
    said += process.stderr.read()
    code = process.wait()
    expected = -signal.SIGKILL if victim == process.pid else 128 + signal.SIGKILL
    assert code in (0, expected), (code, said)
    return code != 0


def chaos(
    command: str, kills: int, steps: int, seed: int, folder: Path, nproc: int = 1, moments: Sequence[str] = MOMENTS
) -> Counter[str]:
    """Returns how often the run was killed at which moment. Raises AssertionError if anything is other than undisturbed."""
    generator = random.Random(seed)
    ranks = ["--nproc", str(nproc)] if nproc > 1 else []
    options = [*prepare(folder), *ranks]
    calm, wild = folder / "calm", folder / "wild"
    how = [command, "--steps", str(steps), "--checkpoint-every", "1", *options]
    if command == "apply":
        schedule = folder / "schedule.parquet"
        finish("proxy-train", "--steps", 20, "--out", schedule, *options)
        how += ["--schedule", str(schedule), "--mode", "replay", "--model", "pythia-14m"]
    for place in (calm, wild):
        place.mkdir()
    finish(*how, "--save-model", calm / "a.model", "--out", calm / "a.parquet")
    killed: Counter[str] = Counter()
    early = [moment for moment in moments if moment != "end"]
    at_end = 0 if "end" not in moments else max(1, kills // 5) if early else kills
    first = True
    while killed.total() < kills:
        moment = generator.choice(early) if killed.total() < kills - at_end else "end"
        what = [*how, "--save-model", wild / "a.model"] if first else [command, "--resume", *ranks]
        process = start(*what, "--out", wild / "a.parquet")
        if not kill_once(process, wild, moment, generator):
            break
        killed[moment] += 1
        first = first and not (wild / "a.run" / "run.json").is_file()
        print(f"killed {killed.total()} of {kills} ({moment})", flush=True)
    finish(command, "--resume", *ranks, "--out", wild / "a.parquet")
    found, expected = (
        {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (wild, calm)
    )
    assert sorted(found) == sorted(expected), (sorted(found), sorted(expected))
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs"
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=("proxy-train", "apply"), default="proxy-train")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        killed = chaos(
            options.command, options.kills, options.steps, options.seed, Path(folder), options.nproc, options.moments
        )
    moments = ", ".join(f"{count} at {moment}" for moment, count in killed.items())
    print(
        f"{options.command}, {options.nproc} processes: killed {killed.total()} times ({moments}), {time.monotonic() - started:.0f} s"
    )
    print("schedule, model and every other file are those of the undisturbed run, and nothing is left over")


if __name__ == "__main__":
    main()
