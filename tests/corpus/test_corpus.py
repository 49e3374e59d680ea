from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.embedded import embedded_corpus
from acodm_cli.corpus.readers import read_documents
from acodm_cli.corpus.tokenizer import load_tokenizer
from acodm_cli.errors import UsageError
from tests.conftest import DOMAINS, generate_documents, opened, write_corpus


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_domains_and_streams(corpus: Corpus) -> None:
    assert corpus.names == list(DOMAINS)
    texts = generate_documents("code", 120, 0)
    expected: list[int] = []
    for text in texts:
        expected += [*corpus.tokenizer.backend.encode(text).ids, corpus.tokenizer.end_of_document]
    assert corpus.domains[1].train.tokens.tolist() == expected
    assert corpus.domains[1].train.tokens.dtype == np.uint16


def test_formats_give_the_same_tokens(tmp_path: Path, tokenizer_file: Path, corpus: Corpus) -> None:
    """JSONL, gzip, zstd, Parquet and text files of the same documents."""
    texts = generate_documents("code", 120, 0)
    lines = "".join(json.dumps({"text": text, "meta": {"n": i}}) + "\n" for i, text in enumerate(texts))
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/a/x.jsonl").write_text(lines)
    with gzip.open(tmp_path / "data/b/x.jsonl.gz", "wt") as file:
        file.write(lines)
    pq.write_table(pa.table({"id": range(120), "text": texts}), tmp_path / "data/c/x.parquet")
    for i, text in enumerate(texts):
        (tmp_path / f"data/d/{i:03}.txt").write_text(text)
    with pa.CompressedOutputStream(str(tmp_path / "data/e/x.jsonl.zst"), "zstd") as stream:
        stream.write(lines.encode())
    found = opened(str(tmp_path / "data"), str(tokenizer_file), str(tmp_path / "cache"))
    for domain in found.domains[1:]:
        assert np.array_equal(domain.train.tokens, found.domains[0].train.tokens)
        assert np.array_equal(domain.validation.tokens, found.domains[0].validation.tokens)
    # Without a validation file every twentieth document is held out.
    held_out = len(texts[19]), len(found.domains[0].validation)
    assert held_out[1] > 0
    total = len(found.domains[0].train) + len(found.domains[0].validation)
    assert total == len(corpus.domains[1].train)


def test_a_single_long_document_is_split(tmp_path: Path, tokenizer_file: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "book.txt").write_text(" ".join(generate_documents("prose", 50, 0)))
    corpus = opened(str(tmp_path / "data"), str(tokenizer_file), str(tmp_path / "cache"))
    train, validation = corpus.domains[0].train, corpus.domains[0].validation
    assert len(validation) == (len(train) + len(validation)) // 20


def test_cache_is_reused_and_keyed_by_content(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = write_corpus(tmp_path / "data", documents=30)
    calls: list[str] = []
    arguments = (str(folder), str(tokenizer_file), str(tmp_path / "cache"))
    first = opened(*arguments, on_progress=lambda name, done, total: calls.append(name))
    assert set(calls) == set(DOMAINS)
    calls.clear()
    again = opened(*arguments, on_progress=lambda name, done, total: calls.append(name))
    assert not calls
    assert again.fingerprint == first.fingerprint
    with (folder / "prose" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more document"}) + "\n")
    changed = opened(*arguments, on_progress=lambda name, done, total: calls.append(name))
    assert set(calls) == {"prose"}
    assert changed.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "fine"}\n{"text": broken}\n', r"train.jsonl:2: not valid JSON"),
        (b'{"text": "fine"}\n\n{"body": "x"}\n', r'train.jsonl:3: no text in field "text"'),
        (b'{"text": "fine"}\n{"text": "\xff"}\n', r"train.jsonl:2: not UTF-8"),
        (b"[1, 2]\n", r"train.jsonl: record 1: no text .* not a record but a number"),
        (b"[" * 100_000 + b"\n", r"train.jsonl: record 1: (JSON is nested too deeply|not valid JSON)"),
    ],
)
def test_bad_records_are_named_and_leave_the_cache_alone(
    tmp_path: Path, tokenizer_file: Path, content: bytes, message: str
) -> None:
    folder = write_corpus(tmp_path / "data", domains=("arithmetic", "prose"), documents=30)
    (folder / "prose" / "train.jsonl").unlink(missing_ok=True)
    (folder / "prose" / "train.jsonl.gz").unlink(missing_ok=True)
    (folder / "prose" / "train.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        opened(str(folder), str(tokenizer_file), str(tmp_path / "cache"))
    # The complete domain is kept; nothing is left of the broken one.
    assert {path.name for path in files_in(tmp_path / "cache")} == {
        "0.train.bin",
        "0.validation.bin",
        "0.documents.bin",
        "index.json",
    }
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_truncated_archives_are_errors(tmp_path: Path, suffix: str) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in generate_documents("prose", 400, 0)).encode()
    path = tmp_path / f"x.jsonl.{suffix}"
    if suffix == "gz":
        path.write_bytes(gzip.compress(lines))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(lines)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match=f"x.jsonl.{suffix}"):
        list(read_documents(path))


def test_missing_and_empty_data(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "a").mkdir(parents=True)
    (tmp_path / "bare" / "b").mkdir(parents=True)
    for data, message in (("none", "does not exist"), ("empty", "nothing to read"), ("bare", "nothing to read")):
        with pytest.raises(UsageError, match=message):
            opened(str(tmp_path / data), str(tokenizer_file), str(tmp_path / "cache"))


def test_tokenizer_errors(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="--data needs --tokenizer"):
        opened(str(data), None, str(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        load_tokenizer(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot load tokenizer"):
        load_tokenizer(str(tmp_path / "bad.json"))


def test_order_of_a_schedule(corpus: Corpus) -> None:
    assert corpus.in_order_of(["tables", "prose", "code", "arithmetic"]).names[0] == "tables"


def test_too_small_a_domain(corpus: Corpus) -> None:
    corpus.check_sequences(16)
    with pytest.raises(UsageError, match="less than one sequence"):
        corpus.check_sequences(10_000_000)


@pytest.mark.slow
def test_embedded_corpus_is_ample_and_deterministic(tmp_path: Path) -> None:
    corpus = opened(None, None, str(tmp_path / "one"))
    assert len(corpus.names) >= 8
    assert corpus.tokens_K.sum() > 5e6
    again, _ = embedded_corpus(tmp_path / "two", lambda *_: None)
    first, _ = embedded_corpus(tmp_path / "one", lambda *_: None)
    for path in files_in(first):
        assert path.read_bytes() == (again / path.relative_to(first)).read_bytes()
