"""The embedded default corpus: text that every installation of acodm already has, and a tokenizer trained on it.

It is for a first look without data or network: ten domains of code, prose, tables and generated arithmetic that a small
model learns at very different speeds. Only files of this Python's standard library and of the packages that acodm and
its tests depend on are read. The corpus is written once to the cache as a folder of JSONL files, and from then on it is
a corpus like any other.

| domain | text |
|---|---|
| stdlib_python | modules of the standard library |
| library_python | modules of torch, transformers and pyarrow |
| unit_tests | tests of pandas, sympy, networkx and numpy |
| type_stubs | .pyi files |
| cpp_headers | C++ headers that torch, pyarrow and numpy install |
| docstrings | docstrings of sympy, networkx, pandas, numpy |
| package_readmes | long descriptions in package metadata, and pydoc's language reference |
| licences | licence texts of packages |
| unicode_names | the Unicode character table |
| arithmetic | generated exercises with answers |
"""

from __future__ import annotations

import ast
import hashlib
import json
import pydoc_data.topics
import random
import sys
import sysconfig
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from acodm_cli.corpus.cache import check_seal, make_once, seal
from acodm_cli.corpus.store_writer import OnProgress

CORPUS_VERSION = 1
VOCAB_SIZE = 4096
DOMAIN_BYTES = 4_000_000
DOCUMENT_CHARACTERS = 40_000
LEAST_DOMAIN_BYTES = 150_000
_PACKAGES = ("torch", "transformers", "pyarrow", "pandas", "sympy", "networkx", "numpy")


def embedded_corpus(cache: Path, on_progress: OnProgress) -> tuple[Path, Path]:
    """Returns the folder of the corpus and the path of its tokenizer.json, which it makes in the cache if need be.

    Raises:
        AcodmError: the cache cannot be written, or what it holds is damaged.
    """
    folder = cache / "embedded" / _environment_key()
    make_once(folder, lambda partial: _write_corpus(partial, on_progress))
    check_seal(folder)
    return folder, folder / "tokenizer.json"


def _environment_key() -> str:
    """A hash of all versions that decide the corpus: those of its recipe, of Python, and of the packages."""
    versions = [f"{name}={_version(name)}" for name in _PACKAGES]
    parts = [str(CORPUS_VERSION), "sealed", sys.version, *versions]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write_corpus(folder: Path, on_progress: OnProgress) -> None:
    seen: set[bytes] = set()
    samples: list[str] = []
    for name, documents in _DOMAINS.items():
        texts = _take(documents(), seen, lambda done, name=name: on_progress(name, done, DOMAIN_BYTES))  # type: ignore[misc]
        if sum(len(text) for text in texts) < LEAST_DOMAIN_BYTES:
            continue  # this installation has no such text (for example, a Python without headers)
        # Texts come in the order of their paths; a fixed shuffle makes any part of the file like any other.
        random.Random(CORPUS_VERSION).shuffle(texts)
        (folder / name).mkdir()
        with (folder / name / "train.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        samples += _head(texts, DOMAIN_BYTES // 8)
    train_tokenizer(samples).save(str(folder / "tokenizer.json"))
    seal(folder)


def _take(documents: Iterator[str], seen: set[bytes], on_bytes: Callable[[int], None]) -> list[str]:
    """Takes distinct documents, each cut to DOCUMENT_CHARACTERS, until they have DOMAIN_BYTES characters together.

    seen: the hashes of all documents that were taken so far. on_bytes: told how much was taken."""
    texts, total = [], 0
    for document in documents:
        text = document.strip()[:DOCUMENT_CHARACTERS]
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if len(text) < 60 or digest in seen:
            continue
        seen.add(digest)
        texts.append(text)
        total += len(text)
        if len(texts) % 16 == 0:
            on_bytes(min(total, DOMAIN_BYTES))
        if total >= DOMAIN_BYTES:
            break
    return texts


def _head(texts: list[str], characters: int) -> list[str]:
    taken, total = [], 0
    for text in texts:
        if total >= characters:
            break
        taken.append(text)
        total += len(text)
    return taken


def train_tokenizer(samples: list[str]) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE tokenizer of VOCAB_SIZE tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(samples, trainer)
    return tokenizer


# Sources of text


def _package_folder(package: str) -> Path | None:
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _files(folder: Path, suffixes: tuple[str, ...], tests: bool | None = None) -> Iterator[str]:
    """Yields the texts of a package's files in order of path. tests: only tests, no tests, or both (None)."""
    paths = [path for path in folder.rglob("*") if path.suffix in suffixes]
    for path in sorted(paths, key=lambda path: path.parts):
        relative = path.relative_to(folder)
        if "site-packages" in relative.parts:
            continue
        is_test = any(part in ("test", "tests", "testing") for part in relative.parts[:-1])
        # A link may lead out of the installation.
        if (tests is not None and tests != is_test) or path.is_symlink() or not path.is_file():
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # the file is not text, or we may not read it


def _package_files(packages: tuple[str, ...], suffixes: tuple[str, ...], tests: bool | None = None) -> Iterator[str]:
    """Yields files of several packages in turn, so that a cut leaves some of each package."""
    folders = [folder for package in packages if (folder := _package_folder(package)) is not None]
    streams = [_files(folder, suffixes, tests) for folder in folders]
    while streams:
        for stream in list(streams):
            text = next(stream, None)
            if text is None:
                streams.remove(stream)
            else:
                yield text


def _stdlib_python() -> Iterator[str]:
    return _files(Path(sysconfig.get_paths()["stdlib"]), (".py",), tests=False)


def _docstrings() -> Iterator[str]:
    """Yields the joined docstrings of each module: prose about mathematics, graphs and tables."""
    for text in _package_files(("sympy", "networkx", "pandas", "numpy"), (".py",), tests=False):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        found = [ast.get_docstring(node) for node in _definitions(tree)]
        yield "\n\n".join(docstring for docstring in found if docstring)


def _definitions(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields what may have a docstring, in the order of ast.walk, which also looks into every expression."""
    left: deque[ast.AST] = deque([tree])
    while left:
        node = left.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for name in node._fields:
            if name in ("body", "cases", "handlers", "orelse", "finalbody"):
                left.extend(getattr(node, name))


def _dependencies() -> list[metadata.Distribution]:
    """Finds, in installed metadata, acodm's dependencies, some of its tests', and all that these need. They are in
    order of name."""
    found: dict[str, metadata.Distribution] = {}
    queue = [*_PACKAGES, "datasets", "typer", "rich", "duckdb", "polars"]
    while queue:
        name = queue.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        key = distribution.metadata["Name"].lower().replace("_", "-")
        if key not in found:
            found[key] = distribution
            queue += [_requirement_name(line) for line in distribution.requires or [] if "extra ==" not in line]
    return [found[key] for key in sorted(found)]


def _requirement_name(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement))
    return requirement[:end]


def _package_readmes() -> Iterator[str]:
    for distribution in _dependencies():
        yield str(distribution.metadata.json.get("description", ""))
    yield from (text for _, text in sorted(pydoc_data.topics.topics.items()))


def _licences() -> Iterator[str]:
    for distribution in _dependencies():
        for file in sorted(distribution.files or [], key=str):
            if any(word in file.name.upper() for word in ("LICENSE", "LICENCE", "COPYING", "NOTICE")):
                path = Path(str(distribution.locate_file(file)))
                try:
                    text = "" if path.is_symlink() else path.read_text(encoding="utf-8")
                except (UnicodeDecodeError, OSError):
                    continue
                # A collection of licences is one file of megabytes, so long texts are cut into several documents.
                for start in range(0, len(text), 8000):
                    yield text[start : start + 8000]


def _unicode_names() -> Iterator[str]:
    lines = []
    for code in range(0x20, 0x30000):
        character = chr(code)
        name = unicodedata.name(character, "")
        if name and not name.startswith(("CJK UNIFIED", "HANGUL SYLLABLE")):
            lines.append(f"U+{code:04X} {character} {name} {unicodedata.category(character)}")
    for start in range(0, len(lines), 64):
        yield "\n".join(lines[start : start + 64])


def _arithmetic() -> Iterator[str]:
    generator = random.Random(0)
    while True:
        lines = []
        for _ in range(48):
            a, b = (
                generator.randrange(10 ** generator.randint(1, 4)),
                generator.randrange(10 ** generator.randint(1, 3)),
            )
            kind = generator.randrange(4)
            if kind == 0:
                lines.append(f"What is {a} plus {b}? {a + b}")
            elif kind == 1:
                lines.append(f"What is {a} minus {b}? {a - b}")
            elif kind == 2:
                lines.append(f"Multiply {a} and {b}. {a * b}")
            else:
                lines.append(f"Divide {a} by {b + 1}. {a // (b + 1)} remainder {a % (b + 1)}")
        yield "\n".join(lines)


_DOMAINS: dict[str, Callable[[], Iterator[str]]] = {
    "stdlib_python": _stdlib_python,
    "library_python": lambda: _package_files(("torch", "transformers", "pyarrow"), (".py",), tests=False),
    "unit_tests": lambda: _package_files(("pandas", "sympy", "networkx", "numpy"), (".py",), tests=True),
    "type_stubs": lambda: _package_files(("torch", "numpy", "pyarrow"), (".pyi",)),
    "cpp_headers": lambda: _package_files(("torch", "pyarrow", "numpy"), (".h", ".hpp", ".cuh")),
    "docstrings": _docstrings,
    "package_readmes": _package_readmes,
    "licences": _licences,
    "unicode_names": _unicode_names,
    "arithmetic": _arithmetic,
}
EMBEDDED_DOMAINS = tuple(_DOMAINS)
