"""The files of a run, and the rules by which they are claimed and resumed.

out.parquet       the schedule, written when the run is complete
out.run/          while it is not: run.json (the settings), checkpoints, and a lock that the run's process holds
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acodm_cli.config import RunSettings
from acodm_cli.errors import UsageError
from acodm_cli.schedule.library import find_schedule
from acodm_cli.writing import partials_of


@dataclass(frozen=True)
class RunFiles:
    out: Path

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.run")

    @property
    def settings(self) -> Path:
        return self.folder / "run.json"

    def check(self, settings: RunSettings, force: bool) -> None:
        """Whether a new run may write here; nothing is changed yet.

        Raises:
            UsageError: something there would be overwritten, or the place cannot be written.
        """
        if self.out.suffix != ".parquet":
            raise UsageError(f"--out {self.out} must end in .parquet")
        if self.out.is_dir():
            raise UsageError(f"--out {self.out} is a folder; give a file name")
        if settings.schedule and Path(settings.schedule).resolve() == self.out.resolve():
            raise UsageError(f"--out {self.out} is the schedule itself; give another --out for the record of this run")
        model = Path(settings.save_model) if settings.save_model else None
        if model is not None and Path.cwd().is_relative_to(model.resolve()):
            raise UsageError(
                f"--save-model {model} is where this runs, and would be replaced; give a folder of its own"
            )
        if not force:
            if self.out.exists():
                raise UsageError(f"{self.out} exists; use --force to replace it, or another --out")
            if any(self.folder.glob("step-*.pt")):
                raise UsageError(
                    f"{self.folder} holds an unfinished run; continue it with --resume, or start over with --force"
                )
            if model is not None and model.exists():
                raise UsageError(f"{model} exists; use --force to replace it, or another --save-model")
        for parent in {self.out.absolute().parent, (model or self.out).absolute().parent}:
            try:
                with tempfile.TemporaryFile(dir=parent):
                    pass
            except OSError as error:
                raise UsageError(f"cannot write in {parent}: {error.strerror}; choose another place") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the run folder. The lock goes with the process, however it ends.

        Raises:
            UsageError: another process is at it.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            handle = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UsageError(f"cannot write in {self.folder}: {error.strerror}; choose another --out") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise UsageError(
                f"another acodm is running with --out {self.out}; wait for it, stop it, or give another --out"
            ) from None
        try:
            yield
        finally:
            if [path.name for path in self._contents()] == ["lock"]:  # a run that never began leaves nothing
                shutil.rmtree(self.folder, ignore_errors=True)
            os.close(handle)

    def _contents(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []

    def begin(self, settings: RunSettings) -> None:
        """Claim the paths of a new run that is ready to train; what `check` let pass is replaced. Needs the lock."""
        for path in self._contents():
            if path.name != "lock":
                path.unlink()
        self.write_settings(settings)

    def write_settings(self, settings: RunSettings) -> None:
        partial = self.folder / ".run.json.partial"
        partial.write_text(json.dumps(settings.to_json(), indent=1) + "\n")
        partial.rename(self.settings)

    def remove_left_over(self, save_model: str | None = None) -> None:
        """What processes that were killed were writing or removing. Needs the lock, or a run that is complete."""
        left = [*self.folder.glob(".*.partial"), *partials_of(self.out), self._done]
        left += partials_of(Path(save_model)) if save_model else []
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Of a run that is complete. At once, by a new name: half of it would look like a run to resume."""
        shutil.rmtree(self._done, ignore_errors=True)
        self.folder.rename(self._done)
        shutil.rmtree(self._done, ignore_errors=True)

    @property
    def _done(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.done")

    def resumable_settings(self) -> RunSettings:
        """Raises UsageError if there is no unfinished run to continue."""
        if not self.settings.is_file():
            raise UsageError(f"nothing to resume: {self.folder} holds no unfinished run; start one without --resume")
        try:
            return RunSettings.from_json(json.loads(self.settings.read_text()))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self.settings} cannot be read ({error}); start over with --force") from None


def input_digests(settings: RunSettings) -> dict[str, str]:
    """Option -> digest of the content of the schedule, the file of weights or the reference model that it names."""
    named = {"--schedule": settings.schedule}
    named |= {name: (settings.mixer_options or {}).get(name) for name in ("schedule", "file", "reference")}
    return {name: _digest(value) for name, value in named.items() if value}


def _digest(source: str) -> str:
    path = Path(source) if Path(source).exists() else find_schedule(source)
    digest = hashlib.sha256()
    for part in sorted(path.glob("*")) if path.is_dir() else [path]:
        if part.suffix in (".safetensors", ".json") or part == path:
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
