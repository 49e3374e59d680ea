"""Finds the data files below a folder, or those that patterns name, and accounts for every other file.

There is one policy for folders, domain fields and manifests. Hidden files and folders are never looked at. Links are followed
if they stay below the place that the user named; those that lead out of it only with --follow-links, and a broken link is
an error. One file, whatever its names, is read once. Of a folder that `datasets` saved, the files of its `state.json` are read.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

from acodm_cli.corpus import names
from acodm_cli.corpus.compression import COMPRESSIONS
from acodm_cli.corpus.readers import STREAMS, TABLES, is_read, is_text
from acodm_cli.errors import UsageError
from acodm_cli.writing import in_short

Kind = Literal["records", "text", "tokens"]
READ = (
    f"acodm reads {', '.join((*STREAMS, *TABLES))} (the former also with {', '.join(filter(None, COMPRESSIONS))}), and tokens "
    "in .bin with .idx, .npy and .ds"
)
_DEEPEST = 64
_LARGEST_JSON = 1 << 26


@dataclass(frozen=True)
class DataFile:
    """A file that may be read.

    path: its path. folders: the names of the folders between the root and the file. kind: whether it holds records, one
    document, or tokens. beside: which words of files around it are `train`, the first or the last ones."""

    path: Path
    folders: tuple[str, ...]
    kind: Kind
    beside: frozenset[str] = frozenset()

    @property
    def stem(self) -> str:
        """The name without the suffixes of formats and compression."""
        return names.stem(self.path)

    @property
    def domain_folders(self) -> list[str]:
        """The folders that do not name a split. Of `code-test`, this is `code`."""
        return [rest for name in self.folders if (rest := names.without_split(name))]

    def held_out_word(self, named_by_domain: bool) -> str | None:
        """The word, in any part of the path, that makes this a held-out file, None for training.

        A word that begins or ends a name may be about something else: in names of text files it counts if another
        name begins or ends with `train`, and so does the first word of files that are named by their domains, because no
        folders are (named_by_domain)."""
        for name in self.folders:
            if (found := names.last_split(name)) not in (None, names.TRAIN):
                return found
        if self.kind == "text" and not named_by_domain:
            found = names.whole_split(self.stem) or (names.last_split(self.stem) if "last" in self.beside else None)
        else:
            found = names.last_split(self.stem)
        if found is None and ("first" in self.beside or (self.kind != "text" and not named_by_domain)):
            found = names.first_split(self.stem)
        return None if found == names.TRAIN else found


@dataclass
class Account:
    """What became of every file. read: how many are read. furniture: files beside data that are no data, such as a README.
    unread: all others. again: folders that lead to one that was read, and that one. warnings, said: what the user should
    know about those that are read."""

    read: int = 0
    furniture: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    again: list[tuple[Path, Path]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def add(self, other: Account) -> None:
        """Adds what became of further files."""
        self.read += other.read
        self.furniture += other.furniture
        self.unread += other.unread
        self.again += other.again
        self.warnings += other.warnings
        self.said += other.said


@dataclass(frozen=True)
class Places:
    """Where files may lie. root: the folder that the user named, resolved. follow_links: whether links may lead out of it."""

    root: Path
    follow_links: bool

    def check(self, path: Path) -> None:
        """Raises UsageError if a path is a broken link, or leads out of the root where it must not."""
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError in older versions of Python
            reason = in_short(error) if not isinstance(error, FileNotFoundError) else "what it leads to does not exist"
            raise UsageError(f"{path} is a broken link ({reason}); repair or remove it") from None
        if not (self.follow_links or target.is_relative_to(self.root)):
            raise UsageError(
                f"{path} is a link that leads out of {self.root}, to {target}; add --follow-links if that is meant"
            )


def files_below(root: Path, follow_links: bool) -> tuple[list[DataFile], Account]:
    """Finds the data files below a folder, in order of their paths.

    Raises:
        UsageError: a link is broken or leads out of the folder, or a folder cannot be read.
    """
    walk = _Walk(Places(root.resolve(), follow_links))
    return walk.below(root, ()), walk.account


class _Walk:
    """Walks through folders, and sorts what lies in them. Every folder is looked at once, however many links lead to it;
    links are followed when all folders proper were seen, so that these keep their places."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.account = Account()
        self.seen: dict[tuple[int, int], Path] = {}
        self.links: list[tuple[Path, tuple[str, ...]]] = []

    def below(self, folder: Path, folders: tuple[str, ...]) -> list[DataFile]:
        """Returns the data files below a folder, in order of their paths. folders: the names of the folders down to it."""
        found = list(self._within(folder, folders))
        while self.links:
            found += self._within(*self.links.pop(0))
        return sorted(found, key=lambda file: file.path)

    def _within(self, folder: Path, folders: tuple[str, ...]) -> Iterator[DataFile]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            first = self.seen.setdefault(identity(folder), folder)
        except OSError as error:
            raise UsageError(f"{folder} cannot be read ({in_short(error)})") from None
        if first is not folder:
            self.account.again.append((folder, first))
            self.account.said.append(f"{folder} is {first} again, and is read once")
            return
        if len(folders) > _DEEPEST:
            raise UsageError(f"{folder} lies more than {_DEEPEST} folders deep; move it up")
        beside = {entry.name for entry in entries}
        saved, splits = _saved_files(folder, beside), _saved_splits(folder, beside)
        if any(entry.is_dir() and names.first_split(entry.name) == names.TRAIN for entry in entries):
            splits |= {name for name in beside if names.first_split(name) not in (None, names.TRAIN)}
        train = _train_words(beside)
        for entry in entries:
            path = folder / entry.name
            if names.is_hidden(entry.name):
                continue
            if entry.is_symlink() and not names.is_furniture(entry.name):
                self.places.check(path)
            if path.is_dir():
                if names.is_furniture_folder(entry.name):
                    self.account.furniture += [inner for inner in path.rglob("*") if not inner.is_dir()]
                else:
                    name = (names.split_in(entry.name) or entry.name) if entry.name in splits else entry.name
                    if entry.is_symlink():
                        self.links.append((path, (*folders, name)))
                    else:
                        yield from self._within(path, (*folders, name))
            elif saved is not None and path.suffix == ".arrow" and entry.name not in saved:
                self.account.furniture.append(path)
            elif (file := self.sort(path, folders, beside, train)) is not None:
                yield file

    def sort(
        self,
        path: Path,
        folders: tuple[str, ...],
        beside: set[str],
        train: frozenset[str],
        may_be_furniture: bool = True,
    ) -> DataFile | None:
        """Returns a file if it holds data, else accounts for it. beside: the names of the files around it. train: which
        words of these are `train`."""
        if _goes_with(path, beside):
            self.account.read += 1
        elif may_be_furniture and names.is_furniture(path.name):
            self.account.furniture.append(path)
        elif path.is_file() and (kind := kind_of(path)) is not None:
            return DataFile(path, folders, kind, train)
        else:
            self.account.unread.append(path)
        return None


def _train_words(file_names: set[str]) -> frozenset[str]:
    """Which words of file names are `train`: the first or the last ones."""
    stems = [names.stem(Path(name)) for name in file_names if not names.is_furniture(name)]
    words = (("first", names.first_split), ("last", names.last_split))
    return frozenset(which for which, split in words if any(split(stem) == names.TRAIN for stem in stems))


def kind_of(path: Path) -> Kind | None:
    """What a file of this name holds, None if acodm does not read it."""
    if path.suffix in names.TOKEN_FORMATS:
        return "tokens"
    return ("text" if is_text(path) else "records") if is_read(path) else None


def _goes_with(path: Path, beside: set[str]) -> bool:
    """Whether a file belongs to a file of tokens beside it."""
    name = path.name
    for ending, of in ((".idx", ".bin"), (".ds.index", ".ds"), (".ds.metadata", ".ds"), (".ds.loss", ".ds"), (".csv.gz", ".npy")):  # fmt: skip
        if name.endswith(ending) and name.removesuffix(ending) + of in beside:
            return True
    return False


def _saved_files(folder: Path, beside: set[str]) -> set[str] | None:
    """The Arrow files of a dataset that `datasets` saved in a folder, None if it did not.

    Raises:
        UsageError: a file of the dataset is not there.
    """
    state = _json_of(folder / "state.json") if "state.json" in beside else None
    listed = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(listed, list):
        return None
    files = {str(each.get("filename")) for each in listed if isinstance(each, dict)}
    if not files:
        return None
    if missing := sorted(files - beside):
        raise UsageError(f"{folder} was saved by datasets, but its file {missing[0]} is not there; save it again")
    return files


def _saved_splits(folder: Path, beside: set[str]) -> set[str]:
    """The splits that `datasets` saved as sub-folders of a folder."""
    saved = _json_of(folder / "dataset_dict.json") if "dataset_dict.json" in beside else None
    listed = saved.get("splits") if isinstance(saved, dict) else None
    return set(map(str, listed)) if isinstance(listed, list) else set()


def _json_of(path: Path) -> object:
    """The content of a small JSON file, None if it is not one."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= _LARGEST_JSON else None
    except (OSError, ValueError, RecursionError):
        return None


# Patterns


def files_matching(base: Path, pattern: str, follow_links: bool) -> tuple[list[DataFile], Account]:
    """Finds the data files that a pattern names, in order. A folder that it names stands for the files below.

    A pattern that stays below its base must not lead out of it through links. A file that is named without wildcards is
    data whatever it is called.

    base: the folder that a relative pattern starts from.

    Raises:
        UsageError: nothing that can be read matches, or a link is broken or leads out of its place.
    """
    try:
        path = Path(pattern).expanduser()
    except RuntimeError as error:  # an unknown user's home
        raise UsageError(f"{pattern}: {error}") from None
    absolute = path.is_absolute()
    if absolute:
        base, path = Path(path.anchor), path.relative_to(path.anchor)
    literal = os.path.lexists(base / path)  # also of a name that holds wildcards
    parts = list(path.parts)
    known = len(parts) if literal else next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    fixed, wild = base.joinpath(*parts[:known]), tuple(parts[known:])
    inside = Path(os.path.abspath(fixed)).is_relative_to(os.path.abspath(base))  # noqa: PTH100 - links are not followed
    root = base if inside and not absolute else fixed if fixed.is_dir() else fixed.parent
    walk = _Walk(Places(root.resolve(), follow_links))
    if os.path.lexists(fixed):
        walk.places.check(fixed)
    found: list[DataFile] = []
    if "**" in wild and fixed.is_dir():
        found = [file for file in walk.below(fixed, ()) if _matches(file.path.relative_to(fixed).parts, wild)]
        for paths in (walk.account.furniture, walk.account.unread):
            paths[:] = [path for path in paths if _matches(path.relative_to(fixed).parts, wild)]
    else:
        matches = _glob(fixed, wild)
        beside = {path.name for path in matches}
        train = _train_words(beside)
        for path in matches:
            walk.places.check(path)
            below = path.relative_to(fixed).parts
            if path.is_dir():
                found += walk.below(path, below)
            elif file := walk.sort(path, below[:-1], beside, train, may_be_furniture=bool(wild)):
                found.append(file)
    if not found:
        raise UsageError(f"{pattern!r} matches no file that can be read; {READ}")
    return found, walk.account


def _glob(fixed: Path, wild: tuple[str, ...]) -> list[Path]:
    """The paths that match a pattern without `**`, in order. fixed, wild: its parts before the first wildcard and from it on."""
    if not wild:
        return [fixed] if os.path.lexists(fixed) else []
    return sorted(fixed / match for match in glob.glob(os.path.join(*wild), root_dir=fixed))  # noqa: PTH118, PTH207 - this one hides dot files


def _matches(parts: tuple[str, ...], wild: tuple[str, ...]) -> bool:
    """Whether the parts of a path match those of a pattern, in which `**` stands for any number of folders."""

    @cache
    def matches(part: int, pattern: int) -> bool:
        if pattern == len(wild):
            return part == len(parts)
        if wild[pattern] == "**":
            return (
                matches(part, pattern + 1)
                or (part < len(parts) and matches(part + 1, pattern))
                or pattern == len(wild) - 1
            )
        return part < len(parts) and fnmatchcase(parts[part], wild[pattern]) and matches(part + 1, pattern + 1)

    return matches(0, 0)


def identity(path: Path) -> tuple[int, int]:
    """What a file is, whatever its names are: links of both kinds lead to the same."""
    status = path.stat()
    return status.st_dev, status.st_ino
