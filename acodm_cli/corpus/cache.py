"""The cache of tokens: folders that any number of processes, and several users, may make and use at once.

    cache/tokens/<key>/        a store: complete, or not there
    cache/tokens/.<key>.acodm-*, .<key>.lock      a store that is being made

A process that makes a folder holds its lock; the others wait for it and find the folder. What a killed process has left has
no holder of its lock, and is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import atomic_folder, cache_errors, in_short, locked_file, partials_of

# Hidden, so that it is no text of the corpus.
_SEAL = ".sha256.json"
_LEFT_OVER = re.compile(r"\.(?P<name>.+)\.(acodm-.+|lock)")


def cache_folder(cache_dir: str | None) -> Path:
    """The folder of the cache. cache_dir: --cache-dir, None for the user cache folder. Raises UsageError if the user has no
    home, as in some containers."""
    try:
        return Path(cache_dir).expanduser() if cache_dir else Path(platformdirs.user_cache_dir("acodm"))
    except RuntimeError as error:
        raise UsageError(
            f"there is no place for the token cache: {in_short(error)}; give one with --cache-dir"
        ) from None


def cached_bytes(cache: Path) -> int:
    """The size of all token stores in the cache, in bytes."""
    total = 0
    for path in (cache / "tokens").glob("[!.]*/*.bin"):
        with suppress(FileNotFoundError):  # another process may have removed it
            total += path.stat().st_size
    return total


def make_once(folder: Path, make: Callable[[Path], None], on_wait: Callable[[], None] = lambda: None) -> None:
    """Makes a folder of the cache if it is not there, in one process only.

    make: fills the folder that it is given. on_wait: called when another process is making the folder.

    Raises:
        AcodmError: the cache cannot be written. What `make` raises is raised too, and leaves nothing behind.
    """
    if folder.is_dir():
        return
    with cache_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, on_wait) as waited:
            if waited:
                for partial in partials_of(folder):  # of a holder of the lock that was killed
                    shutil.rmtree(partial, ignore_errors=True)
            if not folder.is_dir():
                with atomic_folder(folder, existing="keep") as partial:
                    make(partial)


def seal(folder: Path) -> None:
    """Writes down what the files of a folder hold, for `check_seal`."""
    (folder / _SEAL).write_text(json.dumps(_digests(folder)))


def check_seal(folder: Path) -> None:
    """Raises AcodmError if the files of a folder are not what they were when it was sealed."""
    try:
        whole = json.loads((folder / _SEAL).read_text()) == _digests(folder)
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise AcodmError(f"{folder} in the cache is damaged; remove it, and it will be made again")


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _SEAL:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def digest_of_json(value: Any) -> str:
    """Returns a digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def remove_left_over(folders: Path) -> None:
    """Removes what killed processes have left among the folders of the cache. Other users' are left to them."""
    try:
        names = [name for name in os.listdir(folders) if name.startswith(".")]  # noqa: PTH208 - of many thousands
    except OSError:
        return
    for name in names:
        found = _LEFT_OVER.fullmatch(name)
        if found is None:
            continue
        with suppress(OSError), locked_file(_lock_of(folders / found["name"]), wait=False) as held:
            if held and name.endswith(".lock"):
                continue  # the lock removes itself
            if held:
                shutil.rmtree(folders / name, ignore_errors=True)


@contextmanager
def _locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Holds the lock of a folder. Gives whether another process held it first. Where the file system has no locks, nothing
    is waited for."""
    with locked_file(_lock_of(folder), wait=False) as held:
        if held is not False:
            yield False
            return
    on_wait()
    with locked_file(_lock_of(folder), wait=True) as held:
        yield held is True


def _lock_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"
