"""Finds out what --data names, and where the documents of each domain come from.

    folder/<domain>/…/*.jsonl.gz           a sub-folder per domain, with any folders below
    folder/<domain>.jsonl                  a file per domain (also <domain>-00000-of-00007.parquet)
    folder or file, with a domain field    records that carry their domain, as in The Pile and SlimPajama
    manifest.toml                          domains, files or hub datasets, fields, weights
    org/name                               a dataset of the Hugging Face hub, streamed

Folders that name a split, such as train/ and test/, may stand at any depth. Instead of documents, there may be tokens that
other tools have written. Only names and manifests are read here; `files` finds the files, `names` knows what they say.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from acodm_cli.corpus import names
from acodm_cli.corpus.files import READ, Account, DataFile, files_below, files_matching, identity, kind_of
from acodm_cli.corpus.readers import Fields
from acodm_cli.errors import UsageError
from acodm_cli.writing import few, in_short

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LARGEST_MANIFEST = 1 << 24


@dataclass(frozen=True)
class FileSource:
    """Files of documents. domain: the domain of all documents, None if each document names its own. validation: empty
    if a split is to be held out of train."""

    domain: str | None
    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    fields: Fields


@dataclass(frozen=True)
class TokenSource:
    """Files of tokens. validation: empty if a split is to be held out of train."""

    domain: str
    train: tuple[Path, ...]
    validation: tuple[Path, ...]


@dataclass(frozen=True)
class HubSource:
    """A dataset that `datasets` streams. domain: the domain of all documents, None if each document names its own.
    dataset: org/name, or the absolute path of a local folder. tokens: the token budget per domain, None for the whole
    dataset. revision: None for the newest."""

    domain: str | None
    dataset: str
    fields: Fields
    config: str | None = None
    split: str = "train"
    validation_split: str | None = None
    revision: str | None = None
    tokens: int | None = None


Source = FileSource | TokenSource | HubSource


@dataclass(frozen=True)
class TargetPlan:
    """The files of a target (see `targets`). report: those on which losses are reported; empty if a half of `files` is."""

    name: str
    files: tuple[Path, ...]
    report: tuple[Path, ...]
    fields: Fields
    weight: float = 1.0


@dataclass(frozen=True)
class CorpusPlan:
    """What to read for a corpus. name: the name that people see. weights: the prior weight of each domain as a manifest
    gives it; empty if it gives none. upsampling: how often the tokens of a domain count in natural weights. account: what
    became of files that are not read. targets: those that a manifest names. keep: the domains and targets that it says must not be
    forgotten."""

    name: str
    sources: list[Source]
    weights: dict[str, float] = field(default_factory=dict)
    upsampling: dict[str, float] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    targets: list[TargetPlan] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)


def plan_corpus(data: str, fields: Fields, domain_tokens: int | None = None, follow_links: bool = False) -> CorpusPlan:
    """Plans what to read for --data. domain_tokens: the token budget per domain of a hub dataset. follow_links: whether
    links may lead out of the place that the user named.

    Raises:
        UsageError: the data has none of the forms above, or nothing in it can be read.
    """
    path = place_of(data, fields.domain)
    if path is None:
        return CorpusPlan(data, [HubSource(None, data, fields, tokens=domain_tokens)])
    if domain_tokens is not None:
        raise UsageError("--domain-tokens is for a dataset of the hub, and does nothing with files; leave it out")
    if path.is_dir():
        return _checked(_of_folder(path, fields, follow_links))
    if path.suffix == ".toml" and fields.domain is not None:
        raise UsageError("--domain-field does nothing with a manifest, which names the domains; leave it out")
    if path.suffix == ".toml":
        return _checked(_of_manifest(path, fields, follow_links))
    if fields.domain is None:
        raise UsageError(
            f"--data {data} is one file; name the field with each record's domain (--domain-field), or give a folder "
            "or a manifest"
        )
    kind = kind_of(path) if path.is_file() else None
    if kind is None:
        raise UsageError(f"--data {data} cannot be read; {READ}")
    source = _of_fields([DataFile(path, (), kind)], fields, Account(), f"--data {data}")
    return _checked(CorpusPlan(path.stem, [source]))


def place_of(data: str, domain_field: str | None) -> Path | None:
    """Returns where --data lies, None if it is the name of a hub dataset. This is quick, and reads nothing.

    Raises:
        UsageError: there is no such place, and it cannot be the name of a hub dataset.
    """
    try:
        path = Path(data).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # a name that no file can have, or an unknown user's home
        raise UsageError(f"--data {in_short(ValueError(data), 80)}: {in_short(error)}") from None
    hub_name = _HUB_NAME.fullmatch(data)
    if hub_name and domain_field is not None:
        return None
    hint = "; for a hub dataset, also name the field with each record's domain (--domain-field)" if hub_name else ""
    raise UsageError(
        f"--data {data} does not exist here; give a folder, a file, a manifest (.toml), or a hub dataset (org/name){hint}"
    )


def _checked(plan: CorpusPlan) -> CorpusPlan:
    """Returns the plan with every file in it once.

    Raises:
        UsageError: a file would be read for two domains, or for both splits.
    """
    seen: dict[tuple[int, int], tuple[Path, str]] = {}
    sources: list[Source] = []
    for source in plan.sources:
        if isinstance(source, HubSource):
            sources.append(source)
            continue
        kept: dict[str, list[Path]] = {"training": [], "validation": []}
        for split, paths in (("training", source.train), ("validation", source.validation)):
            for path in paths:
                place = f"{split} of domain {source.domain}" if source.domain else split
                first, before = seen.setdefault(identity(path), (path, place))
                if before != place:
                    raise UsageError(
                        f"{first} would be read for {before}, and as {path} for {place}; leave one of them out"
                    )
                if first is path:
                    kept[split].append(path)
                    plan.account.read += 1
                else:
                    plan.account.said.append(f"{path} is {first}, and is read once")
        if isinstance(source, FileSource):
            sources.append(FileSource(source.domain, tuple(kept["training"]), tuple(kept["validation"]), source.fields))
        else:
            sources.append(TokenSource(source.domain, tuple(kept["training"]), tuple(kept["validation"])))
    return replace(plan, sources=sources)


# Folders


def _of_folder(folder: Path, fields: Fields, follow_links: bool) -> CorpusPlan:
    found, account = files_below(folder, follow_links)
    name, where = folder.resolve().name, f"--data {folder}"
    if fields.domain is not None:
        return CorpusPlan(name, [_of_fields(found, fields, account, where)], account=account)
    if not found:
        raise UsageError(f"{where} has nothing to read in it or in its sub-folders{_instead(account)}; {READ}")
    for again, first in account.again:
        if again.parent == folder:
            raise UsageError(f"{again} and {first} are the same folder, which would be two domains; remove the link")
    in_folders: dict[str, list[DataFile]] = defaultdict(list)
    at_top: list[DataFile] = []
    for file in found:
        folders = file.domain_folders
        (in_folders[folders[0]] if folders else at_top).append(file)
    if any(file.kind != "text" for file in found):
        for side in [name for name, files in in_folders.items() if names.is_side_folder(name)]:
            if all(file.kind == "text" for file in in_folders[side]):
                account.unread += [file.path for file in in_folders.pop(side)]
    by_name = _by_file_names(at_top, bool(in_folders), account, where)
    if not by_name and len(in_folders) == 1:
        _check_depth(folder, next(iter(in_folders.items())))
    _check_unread_folders(folder, in_folders, account)
    sources: list[Source] = [
        _of_domain(domain, in_folders.get(domain, []), by_name.get(domain, []), fields, account, where)
        for domain in sorted({*in_folders, *by_name})
    ]
    return CorpusPlan(name, sources, account=account)


def _by_file_names(
    files: list[DataFile], beside_folders: bool, account: Account, where: str
) -> dict[str, list[DataFile]]:
    """Sorts files by the domains that their names name. beside_folders: whether others lie in folders of domains."""
    if beside_folders or any(file.kind != "text" for file in files):
        account.unread += [file.path for file in files if file.kind == "text"]
        files = [file for file in files if file.kind != "text"]
    train = [file for file in files if file.held_out_word(named_by_domain=True) is None]
    stems = {file: names.without_first_split(file.stem) if "first" in file.beside else file.stem for file in files}
    domains, said = names.parts_of_sets(sorted({stems[file] for file in train}))
    account.said += said
    for file in train:
        if not domains[stems[file]]:
            raise UsageError(
                f"{where}: the name of {file.path.name} names no domain; name the field with each record's domain "
                "(--domain-field), or put the files of each domain into a sub-folder named for it"
            )
    found: dict[str, list[DataFile]] = defaultdict(list)
    for file in files:
        held_out = file.held_out_word(named_by_domain=True) is not None
        domain = names.domain_of_held_out(stems[file], domains.values()) if held_out else domains[stems[file]]
        if not domain:
            raise UsageError(
                f"{where} has a file per domain, and {file.path.name} is held out, but of which domain? put the files of each "
                f"domain into a sub-folder named for it, or name the file DOMAIN.{file.path.name}"
            )
        found[domain].append(file)
    return found


def _check_depth(folder: Path, only: tuple[str, list[DataFile]]) -> None:
    """Raises UsageError if the only sub-folder of a folder seems to be the corpus."""
    name, files = only
    inner = sorted({file.domain_folders[1] for file in files if len(file.domain_folders) > 1})
    if len(inner) > 1 or len({file.stem for file in files}) > 1:
        holds = f"the folders {', '.join(inner[:4])}" if len(inner) > 1 else f"{len(files)} files"
        raise UsageError(
            f"--data {folder} has one folder with data, {name}, which holds {holds}; if these are the domains, give "
            f"--data {folder / name}, and for records that name their domain --domain-field"
        )


def _check_unread_folders(folder: Path, in_folders: Iterable[str], account: Account) -> None:
    """Raises UsageError if a folder beside those of domains holds data, but none that can be read."""
    for path in account.unread:
        top, *below = path.relative_to(folder).parts
        if below and top not in in_folders and names.may_be_data(path) and kind_of(path) is None:
            raise UsageError(
                f"domain {top} has no training file in {folder / top}, but {path.name}; {READ}; convert it, or move the "
                "folder away"
            )


def _instead(account: Account) -> str:
    """Says what lies there instead of data."""
    likely = [path for path in account.unread if names.may_be_data(path)]
    return f", only files such as {likely[0].name}" if likely else ""


def _shown(files: list[DataFile]) -> str:
    """The first few of some files, with the folders that they lie in."""
    shown = [str(Path(*file.folders[-2:], file.path.name)) for file in files]
    return few(shown) + (f" ({len(shown)} files)" if len(shown) > 3 else "")


def _split(files: list[DataFile], named_by_domain: bool) -> tuple[list[DataFile], list[DataFile]]:
    """Returns (train, validation). Of several kinds of held-out files, the first is taken, and none is trained on."""
    words = [(file, file.held_out_word(named_by_domain)) for file in files]
    for word in names.HELD_OUT_WORDS:
        if validation := [file for file, found in words if found == word]:
            break
    return [file for file, found in words if found is None], validation


def _of_domain(
    domain: str,
    in_folder: list[DataFile],
    named: list[DataFile],
    fields: Fields,
    account: Account,
    where: str,
    validation: list[DataFile] | None = None,
) -> FileSource | TokenSource:
    """Returns the source of a domain. in_folder: the files in its folder. named: the files that are named for it.
    validation: its validation files, None for those whose names say so."""
    train, held_out = _split(in_folder, named_by_domain=False)
    more_train, more_held_out = _split(named, named_by_domain=True)
    train += more_train
    used = (held_out or more_held_out) if validation is None else validation
    files = [*in_folder, *named]
    taken = {file.path for file in (*train, *used)}
    if passed_over := [file for file in files if file.path not in taken]:
        account.said.append(f"{domain}: also held out, but not validated on: {_shown(passed_over)}")
    if not train:
        raise UsageError(
            f"domain {domain} has no training file in {where}: {_shown(files)} held out (validation or test) by name; rename "
            "what should be trained on"
        )
    _warn_of_names(f"domain {domain}: ", train, account)
    if {"text", "records"} <= {file.kind for file in train}:
        texts = [file for file in train if file.kind == "text"]
        account.warnings.append(
            f"domain {domain}: text files beside records are taken for documents too: {_shown(texts)}"
        )
    account.warnings += names.missing_parts(domain, [file.stem for file in in_folder])
    paths = [tuple(sorted(file.path for file in part)) for part in (train, used)]
    kinds = {file.kind == "tokens" for file in (*train, *used)}
    if kinds == {True, False}:
        tokens = next(file.path.name for file in (*train, *used) if file.kind == "tokens")
        other = next(file.path.name for file in (*train, *used) if file.kind != "tokens")
        raise UsageError(f"domain {domain} has both tokens ({tokens}) and documents ({other}); give it one kind")
    return TokenSource(domain, paths[0], paths[1]) if True in kinds else FileSource(domain, paths[0], paths[1], fields)


def _warn_of_names(where: str, train: list[DataFile], account: Account) -> None:
    if doubtful := [file for file in train if any(map(names.names_a_split, (*file.folders, file.stem)))]:
        account.warnings.append(f"{where}trained on although their names hold a word such as test: {_shown(doubtful)}")


def _of_fields(files: list[DataFile], fields: Fields, account: Account, where: str) -> FileSource:
    """Returns the source of files whose records name their domains."""
    records = [file for file in files if file.kind == "records"]
    account.unread += [file.path for file in files if file.kind != "records"]
    train, validation = _split(records, named_by_domain=False)
    if not train:
        held_out = f"; {validation[0].path.name} is held out by its name" if validation else ""
        raise UsageError(f"{where} has no file whose records could carry {fields.domain!r}{held_out}; {READ}")
    _warn_of_names("", train, account)
    taken = {file.path for file in (*train, *validation)}
    if passed_over := [file for file in records if file.path not in taken]:
        account.said.append(f"also held out, but not validated on: {_shown(passed_over)}")
    return FileSource(
        None, tuple(sorted(file.path for file in train)), tuple(sorted(file.path for file in validation)), fields
    )


# Manifests

_MANIFEST_KEYS = {"name", "text_field", "domains", "targets"}
_TARGET_KEYS = {"files", "validation", "test", "text_field", "prompt_field", "answer_field", "weight", "keep"}
_COMMON_KEYS = {"text_field", "weight", "upsampling", "keep"}
_FILE_KEYS = {"files", "validation"}
_DATASET_KEYS = {"dataset", "config", "split", "validation_split", "revision", "tokens"}


def _of_manifest(path: Path, fields: Fields, follow_links: bool) -> CorpusPlan:
    """Reads a manifest: TOML with a table `domains.<name>` per domain, which has `files` (patterns, relative to the
    manifest) or `dataset`."""
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise UsageError(f"manifest {path} is larger than {_LARGEST_MANIFEST >> 20} MiB; name files by patterns")
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"manifest {path} cannot be read ({in_short(error)})") from None
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
        _check_keys(entry, _COMMON_KEYS | _FILE_KEYS | _DATASET_KEYS, where)
        plan.sources.append(_of_entry(path.parent, name, entry, default, where, plan.account, follow_links))
        for key, found in (("weight", plan.weights), ("upsampling", plan.upsampling)):
            value = _value(entry, key, (int, float), where)
            if value is not None:
                found[name] = float(_positive(value, key, where))
        if _value(entry, "keep", bool, where):
            plan.keep.append(name)
    targets = _value(content, "targets", dict, f"manifest {path}") or {}
    for name, entry in targets.items():
        where = f"manifest {path}, target {name}"
        plan.targets.append(_target(path.parent, name, entry, default, where, follow_links))
        if _value(entry, "keep", bool, where):
            plan.keep.append(name)
    if plan.weights and len(plan.weights) < len(domains):
        missing = ", ".join(name for name in domains if name not in plan.weights)
        raise UsageError(f"manifest {path}: no weight for {missing}; give every domain a weight, or none")
    return plan


def _target(folder: Path, name: str, entry: Any, default: Fields, where: str, follow_links: bool) -> TargetPlan:
    """Returns the plan of a target: its files, or its files for guidance (`validation`) and for reports (`test`)."""
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: not a table with files")
    _check_keys(entry, _TARGET_KEYS, where)
    apart = {"validation", "test"} & set(entry)
    if ("files" in entry) == bool(apart) or len(apart) == 1:
        raise UsageError(f"{where}: give either files, or both validation (to guide) and test (to report)")
    parts = [
        tuple(
            file.path for file in _matching(folder, entry[key], where, Account(), follow_links) if file.kind != "tokens"
        )
        for key in (("validation", "test") if apart else ("files",))
    ]
    prompt = _value(entry, "prompt_field", str, where)
    answer = _value(entry, "answer_field", str, where)
    if (prompt is None) != (answer is None):
        raise UsageError(f"{where}: prompt_field and answer_field go together; give both or neither")
    fields = Fields(answer or _value(entry, "text_field", str, where) or default.text, prompt=prompt)
    weight = _positive(_value(entry, "weight", (int, float), where), "weight", where)
    return TargetPlan(name, parts[0], parts[1] if apart else (), fields, 1.0 if weight is None else float(weight))


def _of_entry(
    folder: Path, name: str, entry: dict[str, Any], default: Fields, where: str, account: Account, follow_links: bool
) -> Source:
    fields = Fields(_value(entry, "text_field", str, where) or default.text)
    dataset = _value(entry, "dataset", str, where)
    if (dataset is None) == ("files" not in entry):
        raise UsageError(f"{where}: give either files or a dataset")
    for key in sorted((_DATASET_KEYS if dataset is None else _FILE_KEYS) & set(entry)):
        raise UsageError(
            f"{where}: {key} does nothing with {'files' if dataset is None else 'a dataset'}; leave it out"
        )
    if dataset is not None:
        return HubSource(
            name,
            _dataset(folder, dataset, where),
            fields,
            config=_value(entry, "config", str, where),
            split=_value(entry, "split", str, where) or "train",
            validation_split=_value(entry, "validation_split", str, where),
            revision=_value(entry, "revision", str, where),
            tokens=_positive(_value(entry, "tokens", int, where), "tokens", where),
        )
    files = _matching(folder, entry["files"], where, account, follow_links)
    validation = None
    if "validation" in entry:
        validation = _matching(folder, entry["validation"], where, account, follow_links)
        held_out = {identity(file.path) for file in validation}
        files = [file for file in files if identity(file.path) not in held_out]
        if not files:
            raise UsageError(f"{where}: all of its files are its validation files too; leave some to train on")
    source = _of_domain(name, files, [], fields, account, where, validation)
    explicit = [file for file in files if file.path in source.train]
    if doubtful := [file for file in explicit if any(map(names.names_a_split, _folders_below(folder, file)))]:
        account.warnings.append(f"{where}: trained on although their folders are named as held out: {_shown(doubtful)}")
    return source


def _folders_below(folder: Path, file: DataFile) -> tuple[str, ...]:
    """The names of the folders from a manifest's folder down to a file, but for those that decide its split anyway."""
    path = file.path
    outer = path.relative_to(folder).parts[:-1] if path.is_relative_to(folder) else path.parts[-3:-1]
    return outer[: len(outer) - len(file.folders)]


def _dataset(folder: Path, dataset: str, where: str) -> str:
    """Returns the absolute path of a local dataset, or the name of one of the hub. Other names, such as `json`, would make
    `datasets` read whatever lies in the folder where it runs."""
    local = folder / Path(dataset).expanduser()
    if local.is_dir():
        return str(local.resolve())
    if not _HUB_NAME.fullmatch(dataset):
        raise UsageError(f"{where}: dataset {dataset!r} is neither a folder nor the name of a hub dataset (org/name)")
    return dataset


def _matching(folder: Path, patterns: Any, where: str, account: Account, follow_links: bool) -> list[DataFile]:
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, list) or not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{where}: files are a pattern or a list of patterns")
    found: dict[tuple[int, int], DataFile] = {}
    for pattern in patterns:
        try:
            files, more = files_matching(folder, pattern, follow_links)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        account.add(more)
        for file in files:
            first = found.setdefault(identity(file.path), file)
            if first is not file:
                raise UsageError(
                    f"{where}: {file.path.name} is matched twice; its documents would count double (use upsampling)"
                )
    return list(found.values())


def _positive(value: Any, key: str, where: str) -> Any:
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{where}: {key} = {value}; give a number above 0")
    return value


def _check_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")


def _value(table: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = table.get(key)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{where}: {key} = {value!r} is not of type {names}")
    return value
