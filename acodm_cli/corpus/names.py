"""What the names of files and folders say: a split, a domain, a part of a set, or that they are no data at all.

Nothing is opened here. A name is cut into words at `-`, `_`, `.`, `=`, spaces and capitals; only whole words count, with a
number at their end if they have one: `test`, `val_01` and `partial-validation` name splits, `dev-guide` and `valid_json` do not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from acodm_cli.corpus.compression import COMPRESSIONS
from acodm_cli.corpus.readers import STREAMS, TABLES
from acodm_cli.writing import few

# Of several kinds of held-out text, the first of these is the validation split; none is trained on.
HELD_OUT_WORDS = ("validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "holdout", "test")
TRAIN = "train"
_ALIASES = {
    "training": TRAIN, "trainset": TRAIN, "validate": "validation", "valset": "val", "devset": "dev", "evalset": "eval",
    "testset": "test", "testing": "test", "devtest": "test", "tst": "test",
}  # fmt: skip
_SPLITS = {word: word for word in (*HELD_OUT_WORDS, TRAIN)} | _ALIASES
_CUT = re.compile(r"[-_. =]+|(?<=[a-z])(?=[A-Z])")
_HOLD_OUT = re.compile(r"(held|hold)[-_. ]out", re.IGNORECASE)
# These say how much of a split there is; they name no domain.
_QUANTITIES = {"partial", "full", "sample", "small", "mini", "tiny", "all"}
# These say nothing about split or domain where they end a name, as numbers, sizes and versions do.
_NEUTRAL = {
    "data", "dataset", "set", "split", "part", "shard", "chunk", "file", "of", "tfrecord", "text", "document",
    "documents", "sentence", "tokens", "tokenized", "tok", *_QUANTITIES,
}  # fmt: skip
_SIZE = re.compile(r"\d+[kmbgt]?b?|v\d+")
# What tools append to the name of a set: TFDS, and the preprocessing of Megatron-LM.
_APPENDED = re.compile(r"[-_.](tfrecord|text_document|text_sentence|train|training)$", re.IGNORECASE)
_NUMBERS = re.compile(r"((?:[-_.]\d+)+)([-_]of[-_]\d+)?$", re.IGNORECASE)
_NUMBERED_WORD = re.compile(rf"({'|'.join(_NEUTRAL)})\d+", re.IGNORECASE)

TOKEN_FORMATS = (".bin", ".npy", ".ds")
# Spark puts these into names before the format.
_SPARK = (".snappy", ".c000")
_SUFFIXES = (*STREAMS, *TABLES, *filter(None, COMPRESSIONS), *TOKEN_FORMATS, *_SPARK)

# Files that lie beside data and are not data, by name in lower case.
_FURNITURE = (
    "*.checksum", "*.sha256", "*.sha1", "*.sha512", "*.md5", "*.sig", "*.asc", "*.crc",
    "_success", "_committed_*", "_started_*", "_metadata", "_common_metadata",
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "index.json", "manifest.json",
    "metadata.json", "*.index.json", "cache-*.arrow", "config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "desktop.ini", "thumbs.db",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.ico",
    # What OLMo and Megatron keep beside tokens: masks, and orders of documents and samples.
    "*label_mask*.npy", "*labels_mask*.npy", "*indexmap*.npy", "*doc*_idx.npy", "*sample_idx.npy", "*shuffle_idx.npy",
    "*document_index.npy", "*sample_index.npy", "*shuffle_index.npy",
)  # fmt: skip
_PAPERS = re.compile(
    r"(readme|licen[sc]e|copying|notice|authors|contributing|changelog|citation|code_of_conduct|sources|datasheet|dataset_card"
    r"|requirements|checksums?|(sha(1|256|512)|md5)sums?([-_.].*)?)(\.(md|txt|rst|html|cff|bib))?"
)
_CAPITAL_PAPERS = re.compile(r"(.+[-_.])?(README|LICEN[SC]E|COPYING|NOTICE)([-_.].*)?")
_FURNITURE_FOLDERS = (
    "__macosx", "__pycache__", "_temporary", "_delta_log", "_change_data", "lost+found", "$recycle.bin", "#recycle", "@eadir",
    "system volume information",
)  # fmt: skip
# Folders beside domains of records that are none if all they hold is text.
_SIDE_FOLDERS = (
    "assets", "scripts", "logs", "images", "figures", "config", "configs", "tools", "notebooks", "metadata", "urls",
    "licenses",
)  # fmt: skip
# Formats of text or tokens that acodm does not read. A folder with only such files is not passed over.
_UNREAD_FORMATS = (
    ".csv", ".tsv", ".avro", ".orc", ".mds", ".tfrecord", ".tfrecords", ".h5", ".hdf5", ".pkl", ".pickle", ".npz", ".feather",
    ".msgpack", ".warc", ".wet", ".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".br", ".lzma", ".jsonlines", ".epub", ".lance",
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder is never looked at."""
    return name.startswith(".")


def is_furniture(name: str) -> bool:
    """Whether a file of this name lies beside data and is not data, such as a README, a licence or checksums."""
    if _PAPERS.fullmatch(name.lower()) or any(fnmatch(name.lower(), pattern) for pattern in _FURNITURE):
        return True
    formats = set(map(str.lower, Path(name).suffixes)) & set(_SUFFIXES)
    return _CAPITAL_PAPERS.fullmatch(name) is not None and formats <= {".md", ".txt"}


def is_furniture_folder(name: str) -> bool:
    """Whether a folder of this name holds nothing but what a tool left."""
    return name.lower() in _FURNITURE_FOLDERS


def is_side_folder(name: str) -> bool:
    """Whether a folder of this name is no domain if it holds nothing but text files, and others hold records."""
    return name.lower() in _SIDE_FOLDERS


def may_be_data(path: Path) -> bool:
    """Whether a file that acodm does not read is likely to hold text or tokens, by the formats in its name."""
    return any(suffix.lower() in (*_UNREAD_FORMATS, *_SUFFIXES) for suffix in path.suffixes)


def stem(path: Path) -> str:
    """The name of a file without the suffixes of formats and compression."""
    name = path.name
    while Path(name).suffix.lower() in _SUFFIXES:
        name = name[: -len(Path(name).suffix)]
    return name


# Splits


def _words(name: str) -> list[str]:
    """The words of a name, in lower case, without those at its end that say nothing."""
    words = _all_words(name)
    while words and (words[-1] in _NEUTRAL or _SIZE.fullmatch(words[-1])):
        words.pop()
    return words


def _all_words(name: str) -> list[str]:
    return [word.lower() for word in _CUT.split(_HOLD_OUT.sub(r"\1out", name)) if word]


def _split_of(word: str) -> str | None:
    return _SPLITS.get(word.rstrip("0123456789"))


def first_split(name: str) -> str | None:
    """The split that the first word of a name stands for: a held-out word, TRAIN or None."""
    words = _words(name)
    return _split_of(words[0]) if words else None


def last_split(name: str) -> str | None:
    """The split that the last word of a name stands for, but for words that say nothing: a held-out word, TRAIN or None."""
    words = _words(name)
    return _split_of(words[-1]) if words else None


def whole_split(name: str) -> str | None:
    """The split that a name stands for which has no other word: a held-out word, TRAIN or None."""
    return last_split(name) if len(_words(name)) == 1 else None


def names_a_split(name: str) -> bool:
    """Whether a whole word of a name is a held-out word, wherever it stands."""
    return any(_split_of(word) not in (None, TRAIN) for word in _all_words(name))


def split_in(name: str) -> str | None:
    """The split that a name stands for which is known to name a split if it holds such a word, as `test_sft` does."""
    found = [word for word in map(_split_of, _all_words(name)) if word is not None]
    return next((word for word in found if word != TRAIN), found[0] if found else None)


def without_split(name: str) -> str:
    """A name without the word of a split at its end, and without what follows it: `code` of `code-test-00001`."""
    cuts = list(_CUT.finditer(name))
    for cut in [*reversed(cuts), None]:
        if whole_split(name[cut.end() if cut else 0 :]):
            rest = name[: cut.start()] if cut else ""
            return "" if rest.lower() in _QUANTITIES else rest
    return name


def without_first_split(name: str) -> str:
    """A name without the word of a split at its beginning: `web` of `test_web`."""
    cut = _CUT.search(name)
    return name[cut.end() :] if cut and not whole_split(name) and whole_split(name[: cut.start()]) else name


# Domains in the names of files


def parts_of_sets(stems: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Finds the domains that file names name, where numbers at the end may number the parts of one domain.

    `web-00000-of-00002`, and `web_0`, `web_1` are parts of web: they say how many there are, or count from 0 or 1 without
    a gap. `wiki-20220301` and `wiki-20240801`, or `CC-MAIN-2013-20`, are not.

    stems: the names of training files, without suffixes.

    Returns:
        The domain of each name, empty if nothing but a number is left; and what should be said about the parts.
    """
    sets: dict[str, dict[str, tuple[tuple[int, ...], str]]] = defaultdict(dict)
    for name in stems:
        base = _without_appended(name)
        numbers = _NUMBERS.search(base)
        digits = tuple(int(number) for number in re.findall(r"\d+", numbers[1])) if numbers else ()
        total = numbers[2] or "" if numbers else ""
        base = _without_appended(base[: numbers.start()]) if numbers else base
        if base.isdigit() or not _words(base) or _NUMBERED_WORD.fullmatch(base):
            base = ""
        sets[base][name] = (digits, total)
    domains: dict[str, str] = {}
    said = []
    for base, parts in sets.items():
        numbered = {name: part for name, part in parts.items() if part[0]}
        if not base or not numbered or _is_set(list(numbered.values())):
            domains |= dict.fromkeys(parts, base)
            said += _of_parts(base, list(numbered.values())) if base else []
        else:
            domains |= {name: base if name not in numbered else _without_appended(name) for name in parts}
            if len(numbered) > 1:
                names = sorted(domains[name] for name in numbered)
                said.append(f"{few(names)} are domains of their own: their numbers do not count the parts of one")
    return domains, said


def _without_appended(name: str) -> str:
    while (shorter := _APPENDED.sub("", name)) != name:
        name = shorter
    return name


def _is_set(parts: list[tuple[tuple[int, ...], str]]) -> bool:
    if any(total for _, total in parts):
        return len({total for _, total in parts}) == 1
    first = sorted(digits[0] for digits, _ in parts)
    return first[0] in (0, 1) and first == list(range(first[0], first[0] + len(first)))


def _of_parts(base: str, parts: list[tuple[tuple[int, ...], str]]) -> list[str]:
    total = int(re.split("[-_]", parts[0][1])[-1]) if parts and parts[0][1] else len(parts)
    if len(parts) < total:
        return [f"{base}: {len(parts)} of {total} parts are there"]
    return [f"{base} is one domain of {len(parts)} parts"] if len(parts) > 1 else []


def missing_parts(base: str, stems: Iterable[str]) -> list[str]:
    """What should be said of parts of one domain, of which a name says how many there are. base: the domain."""
    sets: dict[str, set[str]] = defaultdict(set)
    for name in stems:
        if (numbers := _NUMBERS.search(name)) and numbers[2]:
            sets[name[: numbers.start()] + numbers[2]].add(name)
    counts = [(len(parts), int(re.split("[-_]", total)[-1])) for total, parts in sets.items()]
    return [f"{base}: {found} of {total} parts are there" for found, total in counts if found < total]


def domain_of_held_out(name: str, domains: Iterable[str]) -> str:
    """The domain of a held-out file, by its stem. domains: those of the training files, of which one may end in a number."""
    known = set(domains)
    base = _without_appended(without_split(name))
    if base not in known and (numbers := _NUMBERS.search(base)):
        base = _without_appended(base[: numbers.start()])
    return base
