"""Finds out what --data names, and where the documents of each domain come from.

    folder/<domain>/*.jsonl.gz …        a sub-folder per domain
    folder/<domain>.jsonl …             a file per domain (also <domain>-00000-of-00007.parquet)
    folder or file, with a domain field records that carry their domain, as in The Pile and SlimPajama
    manifest.toml                       domains, files or hub datasets, fields, weights
    org/name                            a dataset of the Hugging Face hub, streamed
    *.bin + *.idx                       tokens of Megatron-LM and GPT-NeoX, wherever a file of documents may stand

Only names and manifests are read here.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acodm_cli.corpus.readers import COMPRESSIONS, STREAMS, TABLES, Fields, is_read
from acodm_cli.errors import UsageError

VALIDATION_WORDS = ("validation", "valid", "val", "dev", "test")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# `-00000-of-00007`, `_3` and `.01` number the parts of one domain; Megatron's preprocessing appends `_text_document`.
_PART = re.compile(r"([-_.](\d+(-of-\d+)?|text_document|text_sentence|train))+$")
_VALIDATION = re.compile(rf"[-_.]({'|'.join(VALIDATION_WORDS)})$")
_FORMATS, _COMPRESSED = (*STREAMS, *TABLES), tuple(filter(None, COMPRESSIONS))
_READ = f"acodm reads {', '.join(_FORMATS)} (also {' and '.join(_COMPRESSED)}), and .bin with .idx"


@dataclass(frozen=True)
class FileSource:
    """Files of documents. domain: the domain of all documents, None if each document names its own. validation: empty
    if a split is to be held out of train."""

    domain: str | None
    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    fields: Fields


@dataclass(frozen=True)
class IndexedSource:
    """Tokens on disk. train, validation: paths without .bin and .idx; None if a split is to be held out of train."""

    domain: str
    train: Path
    validation: Path | None


@dataclass(frozen=True)
class HubSource:
    """A dataset that `datasets` streams. domain: the domain of all documents, None if each document names its own.
    tokens: the token budget per domain, None for the whole dataset. revision: None for the newest."""

    domain: str | None
    dataset: str
    fields: Fields
    config: str | None = None
    split: str = "train"
    validation_split: str | None = None
    revision: str | None = None
    tokens: int | None = None


Source = FileSource | IndexedSource | HubSource


@dataclass(frozen=True)
class CorpusPlan:
    """What to read for a corpus. name: the name that people see. weights: the prior weight of each domain as a manifest
    gives it; empty if it gives none. upsampling: how often the tokens of a domain count in natural weights."""

    name: str
    sources: list[Source]
    weights: dict[str, float] = field(default_factory=dict)
    upsampling: dict[str, float] = field(default_factory=dict)


def plan_corpus(data: str, fields: Fields, domain_tokens: int | None = None) -> CorpusPlan:
    """Plans what to read for --data. domain_tokens: the token budget per domain of a hub dataset.

    Raises:
        UsageError: the data has none of the forms above, or nothing in it can be read.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return CorpusPlan(path.resolve().name, _of_folder(path, fields))
    if path.suffix == ".toml":
        return _of_manifest(path, fields)
    if path.is_file():
        if fields.domain is None:
            raise UsageError(
                f"--data {data} is one file; name the field with each record's domain (--domain-field), or give a folder "
                "or a manifest"
            )
        return CorpusPlan(path.stem, [_of_files([path], fields)])
    if _HUB_NAME.fullmatch(data) and not data.startswith(("./", "../")):
        if fields.domain is None:
            raise UsageError(
                f"--data {data} is a hub dataset; name the field with each record's domain (--domain-field)"
            )
        return CorpusPlan(data, [HubSource(None, data, fields, tokens=domain_tokens)])
    raise UsageError(
        f"--data {data} does not exist; give a folder, a file, a manifest (.toml), or a hub dataset (org/name)"
    )


# Folders


def _of_folder(folder: Path, fields: Fields) -> list[Source]:
    if fields.domain is not None:
        return [_of_files(_readable(folder.rglob("*")), fields, f"--data {folder}")]
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if any(_readable(path.iterdir()) for path in folders):
        return [_of_domain(path.name, _readable(path.iterdir()), fields, str(path)) for path in folders]
    named: dict[str, list[Path]] = {}
    for path in _readable(folder.iterdir()):
        named.setdefault(_domain_of(path), []).append(path)
    if not named:
        raise UsageError(f"--data {folder} has nothing to read in it or in its sub-folders; {_READ}")
    for name in named:
        if name.lower() in VALIDATION_WORDS:  # what was held out must not be trained on
            raise UsageError(
                f"--data {folder} has a file per domain, and {named[name][0].name} would be one; put the files of each domain into "
                f"a sub-folder named for it, or name the file DOMAIN.{named[name][0].name}"
            )
    return [_of_domain(name, paths, fields, str(folder), named_by_domain=True) for name, paths in sorted(named.items())]


def _readable(paths: Iterator[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and _may_be_read(path) and not path.name.startswith("."))


def _may_be_read(path: Path) -> bool:
    if path.name in ("dataset_info.json", "state.json", "manifest.json"):
        return False
    return _is_indexed(path) or is_read(path)


def _is_indexed(path: Path) -> bool:
    """Whether a file holds tokens instead of documents."""
    return path.suffix == ".bin"


def _stem(path: Path) -> str:
    """The name of a file without the suffixes of formats and compression."""
    name = path.name
    while Path(name).suffix.lower() in (*_FORMATS, *_COMPRESSED, ".bin"):
        name = name[: -len(Path(name).suffix)]
    return name


def _domain_of(path: Path) -> str:
    """The domain in a file's name: github for `github-00001-of-00010.parquet` and `github.validation.jsonl`."""
    stem = _VALIDATION.sub("", _PART.sub("", _stem(path)))
    return _PART.sub("", stem) or stem or path.stem


def _validation_word(path: Path, named_by_domain: bool) -> str | None:
    """Returns the word that makes a file a validation file, or None. The file's name ends with the word or, unless
    files are named by their domains, starts with it."""
    stem = _PART.sub("", _stem(path)).lower()
    for word in VALIDATION_WORDS:
        if re.search(rf"[-_.]{word}$", stem) or (not named_by_domain and re.match(rf"{word}([-_.\d]|$)", stem)):
            return word
    return None


def _split(paths: list[Path], named_by_domain: bool = False) -> tuple[list[Path], list[Path]]:
    """Returns (train, validation). Of several kinds of validation files, the first is taken, and none is trained on."""
    words = {path: _validation_word(path, named_by_domain) for path in paths}
    validation = next((found for word in VALIDATION_WORDS if (found := [p for p in paths if words[p] == word])), [])
    return [path for path in paths if words[path] is None], validation


def _of_domain(name: str, paths: list[Path], fields: Fields, where: str, named_by_domain: bool = False) -> Source:
    train, validation = _split(paths, named_by_domain)
    if not train:
        raise UsageError(f"domain {name} has no training file in {where}; {_READ}")
    indexed = [path for path in (*train, *validation) if _is_indexed(path)]
    if not indexed:
        return FileSource(name, tuple(train), tuple(validation), fields)
    if len(indexed) < len(train) + len(validation) or len(train) > 1 or len(validation) > 1:
        raise UsageError(
            f"domain {name}: one .bin with its .idx for training, and at most one for validation; found "
            f"{', '.join(path.name for path in (*train, *validation))}"
        )
    return IndexedSource(name, train[0].with_suffix(""), validation[0].with_suffix("") if validation else None)


def _of_files(paths: list[Path], fields: Fields, where: str = "") -> FileSource:
    """Returns the source of files whose records name their domains."""
    train, validation = _split([path for path in paths if not _is_indexed(path)])
    if not train:
        raise UsageError(f"{where} has no file whose records could carry {fields.domain!r}; {_READ}")
    return FileSource(None, tuple(train), tuple(validation), fields)


# Manifests

_MANIFEST_KEYS = {"name", "text_field", "domains"}
_DOMAIN_KEYS = {
    "files", "validation", "dataset", "config", "split", "validation_split", "revision", "tokens", "text_field", "weight",
    "upsampling",
}  # fmt: skip


def _of_manifest(path: Path, fields: Fields) -> CorpusPlan:
    """Reads a manifest: TOML with a table `domains.<name>` per domain, which has `files` (patterns, relative to the
    manifest) or `dataset`."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"manifest {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError tells the line
        raise UsageError(f"manifest {path}: {error}") from None
    _check_keys(content, _MANIFEST_KEYS, f"manifest {path}")
    domains = content.get("domains")
    if not isinstance(domains, dict) or not domains:
        raise UsageError(f"manifest {path} has no domains; give each a table [domains.NAME] with files or a dataset")
    default = Fields(_value(content, "text_field", str, f"manifest {path}") or fields.text)
    plan = CorpusPlan(_value(content, "name", str, f"manifest {path}") or path.stem, [])
    for name, entry in domains.items():
        where = f"manifest {path}, domain {name}"
        if not isinstance(entry, dict):
            raise UsageError(f"{where}: not a table with files or a dataset")
        _check_keys(entry, _DOMAIN_KEYS, where)
        plan.sources.append(_of_entry(path.parent, name, entry, default, where))
        for key, found in (("weight", plan.weights), ("upsampling", plan.upsampling)):
            value = _value(entry, key, (int, float), where)
            if value is not None:
                if not 0 < value < float("inf"):
                    raise UsageError(f"{where}: {key} = {value}; give a number above 0")
                found[name] = float(value)
    if plan.weights and len(plan.weights) < len(domains):
        missing = ", ".join(name for name in domains if name not in plan.weights)
        raise UsageError(f"manifest {path}: no weight for {missing}; give every domain a weight, or none")
    return plan


def _of_entry(folder: Path, name: str, entry: dict[str, Any], default: Fields, where: str) -> Source:
    fields = Fields(_value(entry, "text_field", str, where) or default.text)
    dataset = _value(entry, "dataset", str, where)
    if (dataset is None) == ("files" not in entry):
        raise UsageError(f"{where}: give either files or a dataset")
    if dataset is not None:
        local = folder / dataset
        return HubSource(
            name,
            str(local) if local.exists() else dataset,
            fields,
            config=_value(entry, "config", str, where),
            split=_value(entry, "split", str, where) or "train",
            validation_split=_value(entry, "validation_split", str, where),
            revision=_value(entry, "revision", str, where),
            tokens=_value(entry, "tokens", int, where),
        )
    train = _matching(folder, entry["files"], where)
    if "validation" not in entry:
        return _of_domain(name, train, fields, where)
    validation = _matching(folder, entry["validation"], where)
    if any(map(_is_indexed, (*train, *validation))):
        if len(train) > 1 or len(validation) > 1:
            raise UsageError(f"{where}: one .bin each for files and validation")
        return IndexedSource(name, train[0].with_suffix(""), validation[0].with_suffix(""))
    held_out = set(validation)
    return FileSource(name, tuple(path for path in train if path not in held_out), tuple(validation), fields)


def _matching(folder: Path, patterns: Any, where: str) -> list[Path]:
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{where}: files are a pattern or a list of patterns")
    found: list[Path] = []
    for pattern in patterns:
        absolute = Path(pattern).expanduser()
        base, relative = (Path(absolute.anchor), str(absolute.relative_to(absolute.anchor))) if absolute.is_absolute() else (folder, str(absolute))  # fmt: skip
        matches = _readable(base.glob(relative))
        if not matches:
            raise UsageError(f"{where}: {pattern!r} matches no file that can be read; {_READ}")
        found += matches
    twice = [path.name for path, count in Counter(found).items() if count > 1]
    if twice:
        raise UsageError(f"{where}: {twice[0]} is matched twice; its documents would count double (use upsampling)")
    return found


def _check_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")


def _value(table: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = table.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{where}: {key} = {value!r} is not of type {names}")
    return value
