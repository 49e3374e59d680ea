"""Writes files and folders that are there completely or not at all, also after a power cut, and words the errors if
they cannot be written."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Literal, TextIO

from acodm_cli.errors import AcodmError

_WAIT_SECONDS = 0.05
_READS_UMASK = threading.Lock()


def partial_prefix(path: Path) -> str:
    """Returns how partial names begin: a file or folder is made under one, beside its place, before it gets its own."""
    return f".{path.name}.acodm-"


def partials_of(path: Path) -> list[Path]:
    """Returns the partial files and folders that killed processes have left of a file or folder."""
    parent = path.absolute().parent
    return [other for other in parent.iterdir() if other.name.startswith(partial_prefix(path))]


@contextmanager
def atomic_file(path: Path, durable: bool = True, named: Callable[[Path], Path] | None = None) -> Iterator[IO[bytes]]:
    """Gives a file to write to. When the block ends, the file takes its place at once; if the block raises, nothing has
    changed.

    durable: whether the content and the name are on disk when the block has ended. named: returns the final path for
    the path of the partial file, where it depends on the complete content.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # A link stays, and what it leads to is replaced.
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as device:
            yield device
        return
    descriptor, name = tempfile.mkstemp(prefix=partial_prefix(path), dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(named(partial) if named else path)
        if durable:
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, existing: Literal["replace", "keep"] = "replace") -> Iterator[Path]:
    """Gives an empty folder to fill. When the block ends, it takes its place at once, durably; if the block raises,
    nothing has changed.

    existing: whether a folder that is there by then is replaced, or kept because another process has made the same one.

    Raises:
        OSError: the folder cannot be written.
    """
    parent = path.absolute().parent
    partial = Path(tempfile.mkdtemp(prefix=partial_prefix(path), dir=parent))
    old = parent / f"{partial_prefix(path)}old"
    try:
        yield partial
        for inner in (*partial.rglob("*"), partial):
            _sync(inner)
        partial.chmod(0o777 & ~_umask())
        if existing == "replace" and path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            if not (existing == "keep" and path.is_dir()):
                raise
        _sync(parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked_file(path: Path, wait: bool) -> Iterator[bool | None]:
    """Holds the lock that a file stands for, and removes the file in the end. Gives True, False if another process holds it,
    None if the file system has no locks.

    wait: whether to wait for the other process.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        handle = _opened(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held: bool | None = True
        except BlockingIOError:
            held = False
        except OSError:  # some network file systems
            held = None
        # The holder before may have removed the file between our two calls; then the lock is not of this name any more.
        if held and not _is_named(handle, path):
            os.close(handle)
            time.sleep(_WAIT_SECONDS)
            continue
        break
    try:
        yield held
    finally:
        if held:
            path.unlink(missing_ok=True)
        os.close(handle)


def _opened(path: Path) -> int:
    """Opens a lock file, which may be another user's. NFS locks files only that are open for writing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _sync(path: Path) -> None:
    """Writes the content of a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems cannot do this for folders.
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    with _READS_UMASK:  # which is read by setting it, and two threads at once would leave it changed
        mask = os.umask(0)
        os.umask(mask)
    return mask


def cell(text: str) -> str:
    """Returns a text for a cell of CSV. A spreadsheet would run what begins as a formula does, so that gets a quote in front."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def uncell(text: str) -> str:
    """Returns the text that `cell` made this of."""
    return text[1:] if text[:1] == "'" and cell(text[1:]) != text[1:] else text


def few(names: Sequence[str]) -> str:
    """Returns the first three names on one line, with dots if there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def send_nowhere(stream: TextIO) -> None:
    """Leads a stream that cannot be written any more to the null device, or else Python itself would fail when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def in_short(error: BaseException, longest: int = 200) -> str:
    """Returns what an exception says, on one line, or the name of its type if it says nothing."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:longest] or type(error).__name__


def why_not_written(error: BaseException, place: Path, needed: int | None = None) -> str:
    """Returns, in words, why something could not be written at a place, and how much room it needs if that is the reason.

    needed: the bytes that it takes, if they are known."""
    if not isinstance(error, OSError) and isinstance(error.__context__, OSError):
        error = error.__context__  # PyTorch has it behind a RuntimeError about positions
    words = in_short(error)
    full, quota = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
    sizes = []
    if full in words:  # what a quota leaves is not known here
        sizes.append(f"{size_of(free_bytes(place))} are free there")
    if needed and (full in words or quota in words):
        sizes.append(f"about {size_of(needed)} are needed")
    return f"{words} ({', '.join(sizes)})" if sizes else words


def free_bytes(place: Path) -> int:
    """Returns the room in bytes on the disk on which a place is, or will be."""
    return shutil.disk_usage(_existing(place)).free


def device_of(place: Path) -> int:
    """Returns the number of the disk on which a place is, or will be."""
    return _existing(place).stat().st_dev


def _existing(place: Path) -> Path:
    """Returns a place, or the nearest folder above it that is there."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place


def size_of(count: int) -> str:
    """Returns a number of bytes as text in kB, MB or GB."""
    unit, name = (1e3, "kB") if count < 1e6 else (1e6, "MB") if count < 1e9 else (1e9, "GB")
    return f"{count / unit:,.{int(count >= 1e9)}f} {name}"


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turns an OSError of writing to the cache in its block into an AcodmError."""
    try:
        yield
    except OSError as error:
        raise AcodmError(
            f"cannot write the token cache in {folder}: {why_not_written(error, folder)}; make room (tokens take about half the bytes "
            "of their text), or use --cache-dir"
        ) from None
