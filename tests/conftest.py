"""A small generated corpus and its tokenizer: no network, no files of anyone else."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from acodm_cli.corpus.corpus import Corpus, open_corpus
from acodm_cli.corpus.settings import CorpusSettings
from acodm_cli.corpus.store_writer import OnProgress
from tests.command_line import acodm

DOMAINS = ("arithmetic", "code", "prose", "tables")


def generate_documents(domain: str, count: int, seed: int) -> list[str]:
    generator = random.Random(f"{domain} {seed}")
    words = [
        "".join(random.Random(f"{domain} {i}").choices("abcdefghijklmnop", k=generator.randint(3, 7)))
        for i in range(80)
    ]
    documents = []
    for _ in range(count):
        lines = []
        for _ in range(12):
            a, b = generator.randrange(100), generator.randrange(100)
            chosen = generator.choices(words, k=6)
            if domain == "arithmetic":
                lines.append(f"{a} + {b} = {a + b}")
            elif domain == "code":
                lines.append(f"def {chosen[0]}({chosen[1]}):\n    return {chosen[1]} * {a}")
            elif domain == "tables":
                lines.append(f"| {chosen[0]} | {a} | {b} |")
            else:
                lines.append(" ".join(chosen) + ".")
        documents.append("\n".join(lines))
    return documents


def write_corpus(folder: Path, domains: tuple[str, ...] = DOMAINS, documents: int = 120) -> Path:
    for index, domain in enumerate(domains):
        (folder / domain).mkdir(parents=True)
        for split, count, seed in (("train", documents, 0), ("validation", documents // 4, 1)):
            records = [json.dumps({"text": text}) for text in generate_documents(domain, count, seed)]
            if index % 2:
                with gzip.open(folder / domain / f"{split}.jsonl.gz", "wt") as file:
                    file.write("\n".join(records) + "\n")
            else:
                (folder / domain / f"{split}.jsonl").write_text("\n".join(records) + "\n")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four domains, some compressed."""
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


def write_tokenizer(path: Path, vocabulary: int = 500) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for d in DOMAINS for text in generate_documents(d, 40, 0)], trainer)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def opened(
    data: Path | str | None,
    tokenizer: Path | str | None,
    cache: Path | str | None,
    domain_field: str | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Corpus:
    """A corpus, as `--data`, `--tokenizer`, `--cache-dir` and `--domain-field` name it."""
    paths = [None if path is None else str(path) for path in (data, tokenizer, cache)]
    settings = CorpusSettings(paths[0], paths[1], domain_field, cache_dir=paths[2])
    return open_corpus(settings, on_progress)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def corpus(data: Path, tokenizer_file: Path, cache: Path) -> Corpus:
    return opened(data, tokenizer_file, cache)


@pytest.fixture(scope="session")
def small(data: Path, tokenizer_file: Path, cache: Path) -> list[object]:
    """Options of a run that takes seconds."""
    corpus = ["--data", data, "--tokenizer", tokenizer_file, "--cache-dir", cache]
    return [*corpus, "--seq-len", 32, "--batch", 8, "--validation-sequences", 4, "--device", "cpu"]


@pytest.fixture(scope="session")
def proxy(small: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learned schedule; tests may read it, none may change it."""
    out = tmp_path_factory.mktemp("proxy") / "learned.parquet"
    outcome = acodm("proxy-train", "--model", "pythia-14m", "--steps", 40, "--out", out, *small)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.split() == [str(out)]
    return out


@pytest.fixture(autouse=True)
def _skip_without_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
