"""The corpora of the studies, made of a folder with a sub-folder per domain (train.jsonl.gz, validation.jsonl.gz): a manifest, a tokenizer
that was trained on the head of every domain (4096 tokens), the text that a manifest needs and is not there, and mixtures by hand.

    python -m tests.benchmarks.study_corpora --corpus both --data DIR --eval DIR --out FOLDER

--eval holds HumanEval.jsonl.gz, of which the even tasks guide and the odd ones are reported on, and mmlu.tar.gz, of which dev guides and
test is reported on (question and gold answer).
"""

from __future__ import annotations

import argparse
import base64
import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import tokenizers

from acodm_cli.corpus.embedded import train_tokenizer
from acodm_cli.corpus.readers import PLAIN, read_documents
from acodm_cli.corpus.sources import FileSource, plan_corpus

CHARACTERS = 400_000
# Uniform weights draw 300 x 16 x 128 / 13 tokens of each domain; so many characters are about 3,100.
SCARCE, SCARCE_CHARACTERS = ("freelaw", "github", "pubmed_abstracts"), 9_000
# A mixture with 90% code repeats so many about 12 times in 300 steps of 16 x 128.
SCARCE_CODE, SCARCE_CODE_CHARACTERS = "github", 160_000
REAL = ("arxiv_math", "freelaw", "github", "gutenberg_books", "pubmed_abstracts", "stackexchange", "wikipedia_en")
JUNK, JUNK_CHARACTERS = ("shuffled", "boilerplate", "base64"), 3_000_000
NOTICE = (
    "This page is number {number} of our site. We use cookies to make your visit better. By staying on this page you accept "
    "our terms of use and our privacy notice. All rights reserved. Click here to subscribe to our newsletter. Share this page "
    "with your friends. Log in or register to leave a comment. Back to the top.\n"
)
# The domains that a model learns after the others, and the share of the others in the mixture by hand.
NEW, REPLAYED = ("freelaw", "github", "pubmed_central"), 0.3
# What someone would write down: these domains have these weights, and the others the rest, alike.
CODE = {"github": 0.9, "stackexchange": 0.05}
KNOWLEDGE = {
    "wikipedia_en": 0.4, "gutenberg_books": 0.15, "pubmed_abstracts": 0.15, "freelaw": 0.1, "stackexchange": 0.1,
}  # fmt: skip

Mixture = dict[str, float]


@dataclass(frozen=True)
class Place:
    """data: a folder per domain. evaluations: the texts of targets, None where none are needed. out: where the corpus is written."""

    data: Path
    evaluations: Path | None
    out: Path

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer.json"

    def domains(self) -> Iterator[tuple[str, Path, Path]]:
        """(name, text, held-out text) of each."""
        for folder in sorted(path.resolve() for path in self.data.iterdir() if path.is_dir()):
            yield folder.name, folder / "train.jsonl.gz", folder / "validation.jsonl.gz"

    def by_hand(self, name: str, *points: tuple[float, Mixture]) -> None:
        """Writes a mixture, or one that moves, as a schedule. points: the progress of the run, and the weights there of what is named."""
        domains = [domain for domain, _, _ in self.domains()]
        every = []
        for progress, known in points:
            rest = (1 - sum(known.values())) / max(1, len(domains) - len(known))
            every.append((progress, dict.fromkeys(domains, rest) | known))
        self.write_mixture(name, *every)

    def write_mixture(self, name: str, *points: tuple[float, Mixture]) -> None:
        """Writes a schedule with the weights of all domains at some points of the run."""
        lines = [f"{at},{domain},{weight}" for at, mixture in points for domain, weight in mixture.items()]
        (self.out / f"{name}.csv").write_text("\n".join(["progress,domain,weight", *lines]) + "\n")


# Writes what a corpus needs into a folder, and returns its manifest.
Maker = Callable[[Place], str]


def domain(name: str, train: Path | str, validation: Path | None = None, keep: bool = False) -> str:
    held_out = f'validation = "{validation}"\n' if validation else ""
    return f'[domains.{name}]\nfiles = ["{train}"]\n{held_out}{"keep = true" * keep}\n'


def domains(place: Place) -> str:
    return "".join(domain(*each) for each in place.domains())


def scarce(place: Place) -> str:
    """13 domains, three of them cut to 9,000 characters."""
    return _cut(place, dict.fromkeys(SCARCE, SCARCE_CHARACTERS))


def _cut(place: Place, characters: dict[str, int]) -> str:
    manifest = ""
    for name, train, validation in place.domains():
        if name in characters:
            write_texts(texts_of(train, characters[name]), place.out / f"{name}.jsonl")
        manifest += domain(name, f"{name}.jsonl" if name in characters else train, validation)
    return manifest


def junk(place: Place) -> str:
    """Seven domains of text, and three that are worthless: tokens of Wikipedia in random order, a notice that repeats, random bytes."""
    rng = random.Random(0)
    found = {name: (train, validation) for name, train, validation in place.domains()}
    tokenizer = tokenizers.Tokenizer.from_file(str(place.tokenizer))
    texts = texts_of(found["wikipedia_en"][0], JUNK_CHARACTERS)
    tokens = list(chain.from_iterable(encoded.ids for encoded in tokenizer.encode_batch(texts)))
    rng.shuffle(tokens)
    shuffled = [tokenizer.decode(tokens[start : start + 1000]) for start in range(0, len(tokens), 1000)]
    pages = JUNK_CHARACTERS // (10 * len(NOTICE))
    notices = ["".join(NOTICE.format(number=10 * page + line) for line in range(10)) for page in range(pages)]
    coded = [base64.b64encode(rng.randbytes(3000)).decode() for _ in range(JUNK_CHARACTERS // 4000)]
    for name, of_domain in zip(JUNK, (shuffled, notices, coded), strict=True):
        write_texts(of_domain, place.out / f"{name}.jsonl")
    place.write_mixture("left-out", (0, dict.fromkeys(REAL, 1 / len(REAL)) | dict.fromkeys(JUNK, 0.0)))
    return "".join([domain(name, *found[name]) for name in REAL] + [domain(name, f"{name}.jsonl") for name in JUNK])


def humaneval(place: Place) -> str:
    place.by_hand("hand", (0, CODE))
    return domains(place) + _target(place, "humaneval")


def mmlu(place: Place) -> str:
    place.by_hand("hand", (0, KNOWLEDGE))
    return domains(place) + _target(place, "mmlu")


def both(place: Place) -> str:
    """Two targets. `hand` is the mean of their mixtures by hand; `moving` has first that of MMLU, then that of HumanEval."""
    place.by_hand(
        "hand", (0, {name: (CODE.get(name, 0) + KNOWLEDGE.get(name, 0)) / 2 for name in {**CODE, **KNOWLEDGE}})
    )
    place.by_hand("moving", (0, KNOWLEDGE), (0.499, KNOWLEDGE), (0.501, CODE))
    return domains(place) + _target(place, "humaneval") + _target(place, "mmlu")


def scarce_code(place: Place) -> str:
    """HumanEval, with little code. `hand50` has about 50% of it, and `moving` first that and then 90%."""
    half = {name: weight * 0.5 / sum(CODE.values()) for name, weight in CODE.items()}
    place.by_hand("hand", (0, CODE))
    place.by_hand("hand50", (0, half))
    place.by_hand("moving", (0, half), (0.499, half), (0.501, CODE))
    return _cut(place, {SCARCE_CODE: SCARCE_CODE_CHARACTERS}) + _target(place, "humaneval")


def continued(place: Place) -> str:
    """Ten domains that must be kept, and three new ones. old.toml has the ten; `replay30` gives them 30%."""
    every = list(place.domains())
    old = [each for each in every if each[0] not in NEW]
    (place.out / "old.toml").write_text("".join(domain(*each) for each in old))
    place.by_hand("replay30", (0, {name: REPLAYED / len(old) for name, _, _ in old}))
    return "".join(domain(*each, keep=each in old) for each in every)


MAKERS: dict[str, Maker] = {
    "domains": domains, "scarce": scarce, "junk": junk, "humaneval": humaneval, "mmlu": mmlu, "both": both,
    "scarce-code": scarce_code, "continued": continued,
}  # fmt: skip


def make(name: str, place: Place) -> Path:
    """Returns the manifest of a corpus, which is made if it is not there."""
    manifest = place.out / f"{name}.toml"
    if not manifest.exists():
        place.out.mkdir(parents=True, exist_ok=True)
        train_on(place)
        manifest.write_text(MAKERS[name](place))
    return manifest


def _target(place: Place, name: str) -> str:
    assert place.evaluations is not None, "targets need --eval"
    texts = TARGETS[name](place.evaluations)
    for part, of_part in zip(("guide", "report"), texts, strict=True):
        write_texts(of_part, place.out / f"{name}.{part}.jsonl")
    return f'[targets.{name}]\nvalidation = "{name}.guide.jsonl"\ntest = "{name}.report.jsonl"\n'


def texts_of_humaneval(folder: Path) -> tuple[list[str], list[str]]:
    """(texts of the even tasks, of the odd ones), each prompt and canonical solution."""
    with gzip.open(folder / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines]
    texts = [task["prompt"] + task["canonical_solution"] for task in tasks]
    return texts[::2], texts[1::2]


def texts_of_mmlu(folder: Path) -> tuple[list[str], list[str]]:
    """(texts of dev, of test), each a question and the text of its answer."""
    found: dict[str, list[str]] = {"dev": [], "test": []}
    with tarfile.open(folder / "mmlu.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member)
            split = Path(member.name).parent.name
            if file is None or split not in found:
                continue
            for question, *choices, letter in csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
                found[split].append(f"{question}\nAnswer: {choices['ABCD'.index(letter)]}")
    return found["dev"], found["test"]


TARGETS = {"humaneval": texts_of_humaneval, "mmlu": texts_of_mmlu}


def head(source: FileSource, characters: int) -> list[str]:
    """The first documents of a source, until they have more than so many characters."""
    texts: list[str] = []
    for file in source.train:
        for document in read_documents(file, source.fields):
            if sum(map(len, texts)) > characters:
                return texts
            texts.append(document.text[:40_000])
    return texts


def texts_of(path: Path, characters: int) -> list[str]:
    """The first documents, cut where there are enough characters."""
    texts = head(FileSource("", (path,), (), PLAIN), characters)
    texts[-1] = texts[-1][: characters - sum(map(len, texts[:-1]))]
    return texts


def write_texts(texts: Iterable[str], path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def train_on(place: Place) -> None:
    """Trains the tokenizer on the head of every domain."""
    texts: list[str] = []
    for source in plan_corpus(str(place.data), PLAIN).sources:
        assert isinstance(source, FileSource)
        texts += head(source, CHARACTERS)
    train_tokenizer(texts).save(str(place.tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, choices=MAKERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make(options.corpus, Place(options.data, options.eval, options.out))


if __name__ == "__main__":
    main()
