"""The directory of a run, and the rules by which its paths are claimed and resumed.

    out.parquet       the schedule, written when the run is complete
    out.run/          is there while the run is not complete: run.json (the settings), checkpoints, record.parquet (what
                      the run has recorded so far), and a lock that the run's process holds

A checkpoint is one file, written atomically, with the hash of its content in its name: step-000000300-1f3a….pt
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from acodm_cli import __version__
from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.runs.settings import RunSettings
from acodm_cli.schedule.library import RECORD
from acodm_cli.settings import declared
from acodm_cli.writing import atomic_file, in_short, locked_file, partials_of, why_not_written

RUN_VERSION = 9
CHECKPOINT_VERSION = 5
_OF_A_MODEL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|chat_template\.jinja"
)
_CHECKPOINT = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")
_HASH_DIGITS = 16
# A checkpoint is written in pieces of so many bytes, between which it can be abandoned.
_PIECE = 1 << 24


class RunFolder:
    """The folder of one run, which lies beside its schedule. out: the path of the schedule."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.parent / f"{out.stem}.run"
        self.settings_file = self.path / "run.json"
        self.record = self.path / RECORD

    # Claiming

    def check(self, settings: RunSettings, force: bool) -> None:
        """Checks that a new run may write here. It changes nothing yet.

        Raises:
            UsageError: something would be overwritten, or the place cannot be written.
        """
        self.check_out()
        if settings.schedule and Path(settings.schedule).resolve() in (self.out.resolve(), self.path.resolve()):
            raise UsageError(f"--out {self.out} is the schedule itself; give another --out for the record of this run")
        self.check_model(settings)
        model = Path(settings.save_model) if settings.save_model else None
        if not force:
            if self.out.exists():
                raise UsageError(f"{self.out} exists; use --force to replace it, or another --out")
            if self.checkpoints():
                raise UsageError(
                    f"{self.path} holds an unfinished run; continue it with --resume, or start over with --force"
                )
            for place in (model, results_of(model)) if model is not None else ():
                if place.exists():
                    raise UsageError(f"{place} exists; use --force to replace it, or another --save-model")
        for parent in {self.out.absolute().parent, (model or self.out).absolute().parent}:
            try:
                with tempfile.TemporaryFile(dir=parent):
                    pass
            except OSError as error:
                raise UsageError(f"cannot write in {parent}: {error.strerror}; choose another place") from None

    def check_out(self) -> None:
        """Raises UsageError if --out is not the name of a schedule file."""
        if self.out.suffix != ".parquet":
            raise UsageError(f"--out {self.out} must end in .parquet")
        if self.out.is_dir():
            raise UsageError(f"--out {self.out} is a folder; give a file name")

    def check_model(self, settings: RunSettings) -> None:
        """Raises UsageError if the model's folder would replace, or lie in, something else."""
        if not settings.save_model:
            return
        model = Path(settings.save_model)
        if Path.cwd().is_relative_to(model.resolve()):
            raise UsageError(
                f"--save-model {model} is where this runs, and would be replaced; give a folder of its own"
            )
        others = {"--data": settings.data, "--out": str(self.out), "the run's folder": str(self.path)}
        others |= {
            "--schedule": settings.schedule,
            "--tokenizer": settings.tokenizer,
            "--cache-dir": settings.cache_dir,
        }
        for what, text in others.items():
            other = Path(text).expanduser().resolve() if text else None
            if other is None or not (other.exists() or what.startswith(("--out", "the"))):
                continue
            if other.is_relative_to(model.resolve()) or (
                what != "--cache-dir" and model.resolve().is_relative_to(other)
            ):
                raise UsageError(
                    f"--save-model {model} and {what} {other} would lie in each other; give a folder of its own"
                )
        if model.is_dir() and (
            strange := sorted(path.name for path in model.iterdir() if not _OF_A_MODEL.fullmatch(path.name))
        ):
            raise UsageError(
                f"{model} holds {strange[0]}, which is no part of a saved model, and would be replaced; give another --save-model"
            )
        if model.exists() and not model.is_dir():
            raise UsageError(f"--save-model {model} is a file; give a folder")

    @contextmanager
    def locked(self, warn: Callable[[str], None] = lambda message: None) -> Iterator[None]:
        """Keeps other processes out of the folder. The lock is released when the process ends, however it ends.

        warn: told if the file system has no locks, as Lustre and NFS may have none; then nothing keeps them out.

        Raises:
            UsageError: another process holds the lock, or the folder cannot be written.
        """
        try:
            self.path.mkdir(exist_ok=True)
            handle = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UsageError(f"cannot write in {self.path}: {error.strerror}; choose another --out") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UsageError(
                f"another acodm is running with --out {self.out}; wait for it, stop it, or give another --out"
            ) from None
        except OSError as error:
            warn(f"{self.path} cannot be locked ({in_short(error)}); see to it that no other run uses this --out")
        try:
            yield
        finally:
            if not self.settings_file.is_file() and not self.checkpoints():  # The run never began, or is complete.
                self.remove(with_lock=True)
            os.close(handle)

    @contextmanager
    def model_locked(self, save_model: str | None) -> Iterator[None]:
        """Keeps other runs from saving their model where this one will. save_model: where that is, None for nowhere.

        Raises:
            UsageError: another run will save its model there, or the place cannot be written.
        """
        if save_model is None:
            yield
            return
        model = Path(save_model).absolute()
        try:
            with locked_file(model.parent / f".{model.name}.lock", wait=False) as held:
                if held is False:
                    raise UsageError(f"another run will save its model in {save_model}; give another --save-model")
                yield
        except OSError as error:
            if error.filename is None or not str(error.filename).endswith(".lock"):
                raise
            raise UsageError(f"cannot write in {model.parent}: {in_short(error)}; choose another place") from None

    def begin(self, settings: RunSettings) -> None:
        """Claims the folder for a new run that is ready to train, and deletes an unfinished one. It needs the lock."""
        self.remove()
        self.write_settings(settings)

    def remove(self, with_lock: bool = False) -> None:
        """Removes what acodm has written here, the settings first, because without them there is nothing to resume.
        What others have put here stays. with_lock: removes the lock too, and the folder if nothing is left in it."""
        lock = [self.path / "lock"] if with_lock else []
        for path in (self.settings_file, self.record, *self.checkpoints(), *self._partials(), *lock):
            path.unlink(missing_ok=True)
        if with_lock:
            with suppress(OSError):  # It is not there, or holds a file of someone else's.
                self.path.rmdir()

    def remove_left_over(self, save_model: str | None = None) -> None:
        """Removes what killed processes have left half-written. It needs the lock, or a run that is complete."""
        models = partials_of(Path(save_model)) if save_model else []
        for path in (*self._partials(), *partials_of(self.out), *models):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what a complete run may have left if its process was killed.

        Raises:
            UsageError: another process is at work here.
        """
        if self.path.is_dir():
            with self.locked():  # which leaves nothing where there is nothing to resume
                self.remove_left_over()
        else:
            self.remove_left_over()

    def _partials(self) -> Iterable[Path]:
        return self.path.glob(".*.acodm-*")

    # Settings

    def write_settings(self, settings: RunSettings) -> None:
        """Writes the settings to the folder. Raises AcodmError if they cannot be written."""
        content = {"acodm_version": __version__, "run_version": RUN_VERSION, "settings": settings.to_json()}
        try:
            with atomic_file(self.settings_file) as file:
                file.write(json.dumps(content, indent=1).encode() + b"\n")
        except OSError as error:
            raise AcodmError(
                f"cannot write {self.settings_file}: {why_not_written(error, self.path)}; make room"
            ) from None

    def resumable_settings(self) -> RunSettings:
        """Returns the settings of the unfinished run.

        Raises:
            UsageError: there is no unfinished run to continue, it cannot be read, was changed, or another version of acodm
                began it.
        """
        saved = self._settings_of_checkpoint()
        if not self.settings_file.is_file():
            if saved is None:
                raise UsageError(f"nothing to resume: {self.path} holds no unfinished run; start one without --resume")
            return saved
        try:
            content = json.loads(self.settings_file.read_text())
            if not isinstance(content, dict) or content.get("run_version") != RUN_VERSION:
                raise UsageError(
                    f"the run in {self.path} was begun by another version of acodm; finish it with that version, or start "
                    "over with --force"
                )
            settings = RunSettings.from_json(content["settings"])
        except (ValueError, TypeError, KeyError, OSError) as error:
            if saved is None:
                raise UsageError(
                    f"{self.settings_file} cannot be read ({in_short(error)}); start over with --force"
                ) from None
            return saved
        for name, each in declared(RunSettings).items():
            if saved is not None and not each.changeable and getattr(saved, name) != getattr(settings, name):
                raise UsageError(
                    f"{self.settings_file} was changed: {name} is {getattr(settings, name)}, the run's checkpoints have "
                    f"{getattr(saved, name)}; set it back, or remove the file, and it will be made again"
                )
        return settings

    def _settings_of_checkpoint(self) -> RunSettings | None:
        """The settings in the newest checkpoint that has them, None if there is none."""
        for path in reversed(self.checkpoints()):
            with suppress(AcodmError, ValueError, TypeError, KeyError):
                return RunSettings.from_json(load_checkpoint(path, mapped=True)["settings"])
        return None

    # Checkpoints

    def checkpoints(self) -> list[Path]:
        """Returns the complete checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(path for path in self.path.iterdir() if _CHECKPOINT.fullmatch(path.name))

    def save_checkpoint(
        self, step: int, state: dict[str, Any], keep: int, abandoned: Callable[[], bool] = lambda: False
    ) -> Path:
        """Writes a checkpoint and returns its path. Then all others are removed but the `keep` - 1 before it. One of a
        later step is removed too: it was damaged, and was passed over when the run was resumed.

        abandoned: tells whether to give it up in the middle, as if it could not be written.

        Raises:
            AcodmError: the checkpoint could not be written; earlier ones are untouched.
        """
        import torch

        final = self.path
        try:
            self.path.mkdir(parents=True, exist_ok=True)

            def named(partial: Path) -> Path:
                nonlocal final
                final = self.path / f"step-{step:09d}-{hashed.digest()}.pt"
                return final

            with atomic_file(self.path / f"step-{step:09d}.pt", named=named) as file:
                hashed = _HashedFile(file, abandoned)
                torch.save({"version": CHECKPOINT_VERSION, "step": step, **state}, hashed)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise AcodmError(
                f"cannot write a checkpoint in {self.path}: {why_not_written(error, self.path, bytes_of(state))}; earlier ones are "
                "kept: make room and continue with --resume"
            ) from None
        found = self.checkpoints()
        end = found.index(final) + 1
        for other in (*found[: max(0, end - keep)], *found[end:]):
            other.unlink()
        return final

    def newest_intact(self, warn: Callable[[str], None]) -> Path | None:
        """Returns the newest checkpoint whose content is what was written, None if there is no checkpoint. warn: told
        of each damaged one.

        Raises:
            AcodmError: all checkpoints are damaged.
        """
        found = self.checkpoints()
        for path in reversed(found):
            if is_intact(path):
                return path
            warn(f"checkpoint {path} is damaged (its content is not what was written); trying the one before")
        if found:
            raise AcodmError(f"no checkpoint in {self.path} can be read; start over with --force")
        return None


class _HashedFile:
    """A file that is written from front to back, and hashed meanwhile: reading it again would take as long as writing it."""

    def __init__(self, file: IO[bytes], abandoned: Callable[[], bool]) -> None:
        self._file, self._abandoned = file, abandoned
        self._hash = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), _PIECE):
            if self._abandoned():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            piece = whole[start : start + _PIECE]
            self._hash.update(piece)
            self._file.write(piece)
        return len(whole)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        """Returns the hash of all that was written, as in the name of a checkpoint."""
        return self._hash.hexdigest()[:_HASH_DIGITS]


def results_of(model: Path) -> Path:
    """Returns where the results of a model's evaluation are: beside its folder, which holds nothing but the model."""
    return model.parent / f"{model.name}.eval.json"


def bytes_of(state: Any) -> int:
    """Returns the bytes of the tensors in a state of plain values."""
    if isinstance(state, dict):
        return sum(map(bytes_of, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(bytes_of, state))
    return int(getattr(state, "nbytes", 0))


def check_plain(value: Any, name: str) -> None:
    """Asserts that a checkpoint holds only what can be loaded again without running anyone's code."""
    if isinstance(value, dict):
        for key, part in value.items():
            check_plain(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for part in value:
            check_plain(part, name)
    else:
        plain = value is None or isinstance(value, (str, bytes, bool, int, float)) or type(value).__module__ == "torch"
        assert plain, f"{name} is a {type(value).__name__}; a state must be of tensors and plain values"


def load_checkpoint(path: Path, mapped: bool) -> dict[str, Any]:
    """Returns the content of a checkpoint. mapped: leaves tensors in the file until they are used, because each of many
    ranks takes only its share of them.

    Raises:
        AcodmError: the checkpoint cannot be read, or is of another version.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises whatever its parsers raise
        raise AcodmError(
            f"checkpoint {path} cannot be read ({in_short(error, 120)}); start over with --force"
        ) from None
    if state.get("version") != CHECKPOINT_VERSION:
        raise AcodmError(f"checkpoint {path} has version {state.get('version')!r}, expected {CHECKPOINT_VERSION}")
    return state


def is_intact(path: Path) -> bool:
    """Returns whether the content of a checkpoint is what was written."""
    name = _CHECKPOINT.fullmatch(path.name)
    assert name is not None
    try:
        return _content_hash(path) == name[2]
    except OSError:
        return False


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_DIGITS]
