"""Makes the corpus of the studies with targets: manifests with domains and targets, and a tokenizer.

    python -m tests.benchmarks.target_corpus --data DIR --eval DIR --out FOLDER

--data is a folder with a sub-folder per domain (train.jsonl.gz, validation.jsonl.gz). --eval holds HumanEval.jsonl.gz, of which the even
tasks guide and the odd ones are reported on, and mmlu.tar.gz, of which dev guides and test is reported on (question and gold
answer). Written are humaneval.toml, mmlu.toml, both.toml (two targets), scarce.toml (HumanEval, with so little github that 300 steps of
16 x 128 tokens with 90% of it repeat it about twelve times), and tokenizer.json, a byte-level BPE of 4096 tokens trained on as much text
of every domain.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from acodm_cli.corpus.embedded import train_tokenizer
from acodm_cli.corpus.readers import PLAIN, read_documents
from acodm_cli.corpus.sources import FileSource, plan_corpus

CHARACTERS = 400_000
SCARCE, SCARCE_CHARACTERS = "github", 160_000


def humaneval(path: Path) -> tuple[list[str], list[str]]:
    """(texts of the even tasks, of the odd ones), each prompt and canonical solution."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines]
    texts = [task["prompt"] + task["canonical_solution"] for task in tasks]
    return texts[::2], texts[1::2]


def mmlu(path: Path) -> tuple[list[str], list[str]]:
    """(texts of dev, of test), each a question and the text of its answer."""
    found: dict[str, list[str]] = {"dev": [], "test": []}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member)
            split = Path(member.name).parent.name
            if file is None or split not in found:
                continue
            for question, *choices, letter in csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
                found[split].append(f"{question}\nAnswer: {choices['ABCD'.index(letter)]}")
    return found["dev"], found["test"]


def head(source: FileSource, characters: int) -> list[str]:
    """The first documents of a source, until they have more than so many characters."""
    texts: list[str] = []
    for file in source.train:
        for document in read_documents(file, source.fields):
            if sum(map(len, texts)) > characters:
                return texts
            texts.append(document.text[:40_000])
    return texts


def write_texts(texts: Iterable[str], path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def train_on(data: Path, path: Path) -> None:
    """Trains the tokenizer on the head of every domain."""
    texts: list[str] = []
    for source in plan_corpus(str(data), PLAIN).sources:
        assert isinstance(source, FileSource)
        texts += head(source, CHARACTERS)
    train_tokenizer(texts).save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    targets = {"humaneval": humaneval(options.eval / "HumanEval.jsonl.gz"), "mmlu": mmlu(options.eval / "mmlu.tar.gz")}
    tables: dict[str, str] = {}
    for name, texts in targets.items():
        for part, of_part in zip(("guide", "report"), texts, strict=True):
            write_texts(of_part, options.out / f"{name}.{part}.jsonl")
        tables[name] = f'[targets.{name}]\nvalidation = "{name}.guide.jsonl"\ntest = "{name}.report.jsonl"\n'
    folders = [folder.resolve() for folder in sorted(options.data.iterdir()) if folder.is_dir()]
    train = {folder.name: f"{folder}/train.jsonl.gz" for folder in folders}
    for name, chosen in {**{name: [name] for name in targets}, "both": list(targets), "scarce": ["humaneval"]}.items():
        domains = ""
        for folder in folders:
            scarce = name == "scarce" and folder.name == SCARCE
            files = "scarce.jsonl" if scarce else train[folder.name]
            domains += f'[domains.{folder.name}]\nfiles = ["{files}"]\nvalidation = "{folder}/validation.jsonl.gz"\n'
        (options.out / f"{name}.toml").write_text(domains + "".join(tables[target] for target in chosen))
    few = head(FileSource(SCARCE, (Path(train[SCARCE]),), (), PLAIN), SCARCE_CHARACTERS)
    write_texts(few, options.out / "scarce.jsonl")
    train_on(options.data, options.out / "tokenizer.json")


if __name__ == "__main__":
    main()
