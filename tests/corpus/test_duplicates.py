from __future__ import annotations

import json
from pathlib import Path

import pytest

from acodm_cli.corpus import duplicates
from tests.conftest import opened
from tests.corpus.test_layouts import put, records, texts


def test_copies_are_counted_and_never_on_both_sides(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = records("shared", 10)
    put(tmp_path / "data" / "a" / "0.jsonl", [*records("a", 200), *records("a", 200), *shared])
    put(tmp_path / "data" / "b" / "0.jsonl", [*records("b", 200), *shared])
    corpus = opened(tmp_path / "data", tokenizer_file, tmp_path / "cache")
    found = corpus.duplicates()
    assert found is not None
    tables = [domain.provenance.documents_N for domain in corpus.domains]
    trained = []
    for table in tables:
        assert table is not None
        assert not set(table["hash"][table["held_out"] == 0]) & set(table["hash"][table["held_out"] == 1])
        trained.append(table["hash"][table["held_out"] == 0])
    assert found.within == sum(len(hashes) - len(set(hashes)) for hashes in trained)
    assert 150 < found.within <= 200
    assert found.across == len(set(trained[0]) & set(trained[1]))
    assert found.examples == ("a", "b")
    assert found.leaked == 0
    assert "are copies of others of their domain; " in str(found)
    monkeypatch.setattr(duplicates, "_MOST_DOCUMENTS", 300)
    estimate = corpus.duplicates()
    assert estimate is not None
    assert estimate.estimated
    assert estimate.within == pytest.approx(found.within, rel=0.4)


def test_validation_documents_that_are_trained_on(tokenizer_file: Path, tmp_path: Path) -> None:
    """In their own domain they are left out of validation; in another they are counted."""
    train, validation, other = records("a", 60), records("val", 20), records("other", 7)
    put(tmp_path / "data" / "a" / "train.jsonl", train)
    put(tmp_path / "data" / "a" / "validation.jsonl", [*validation, *train[:5], *other])
    put(tmp_path / "data" / "b" / "0.jsonl", [*records("b", 60), *other])
    corpus = opened(tmp_path / "data", tokenizer_file, tmp_path / "cache")
    assert corpus.domains[0].provenance.overlap == 5
    own, other_domain = (domain.provenance.documents_N for domain in corpus.domains)
    assert own is not None
    assert other_domain is not None
    assert (own["held_out"] == 1).sum() == 27
    found = corpus.duplicates()
    assert found is not None
    trained_on = set(other_domain["hash"][other_domain["held_out"] == 0])
    assert found.leaked == len(trained_on & set(own["hash"][own["held_out"] == 1])) > 0


def test_the_order_of_documents_does_not_decide_what_is_held_out(tokenizer_file: Path, tmp_path: Path) -> None:
    documents = texts("a", 300)
    for name, order in (("x", documents), ("y", documents[::-1])):
        put(tmp_path / name / "a" / "0.jsonl", "\n".join(json.dumps({"text": text}) for text in order))
        put(tmp_path / name / "b" / "0.jsonl", records("b", 300))
    sides = []
    for name in ("x", "y"):
        corpus = opened(tmp_path / name, tokenizer_file, tmp_path / "cache")
        sides.append(sorted(corpus.domains[0].validation.tokens.tolist()))
    assert sides[0] == sides[1]


def test_one_sequence_is_held_out_where_there_is_enough_text(tokenizer_file: Path, tmp_path: Path) -> None:
    from acodm_cli.corpus.corpus import open_corpus
    from acodm_cli.corpus.settings import CorpusSettings

    put(tmp_path / "data" / "big" / "0.jsonl", records("big", 1500))
    put(tmp_path / "data" / "tiny" / "0.jsonl", records("tiny", 100, 30))
    settings = CorpusSettings(str(tmp_path / "data"), str(tokenizer_file), cache_dir=str(tmp_path / "cache"))
    plain, wide = open_corpus(settings), open_corpus(settings, seq_len=1024)
    assert plain.domains[1].validation.num_sequences(1024) == 0
    wide.check_sequences(1024)
    for before, after in zip(plain.domains, wide.domains, strict=True):
        assert len(before.train) + len(before.validation) == len(after.train) + len(after.validation)
    assert plain.fingerprint == wide.fingerprint
