from __future__ import annotations

import pytest

from acodm_cli.corpus import names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("training", "train"), ("code-train", "train"), ("train-00000-of-00007", "train"),
        ("validation", "validation"), ("partial-validation", "validation"), ("val_01", "val"), ("val2", "val"),
        ("web.test", "test"), ("example_holdout_0", "holdout"), ("held-out", "heldout"), ("hold_out", "holdout"),
        ("c4-af-validation.tfrecord-00000-of-00001", "validation"), ("eval_set", "eval"), ("evaluation", "evaluation"),
        ("dev-guide", None), ("valid_json", None), ("invalid", None), ("testing", "test"), ("contest", None), ("latest", None),
        ("devel", None), ("web", None), ("", None), ("00000", None), ("val_10k", "val"), ("code_val_v2", "val"), ("TestSet", "test"),
        ("split=test", "test"), ("devtest", "test"), ("validate", "validation"), ("testset", "test"), ("val_small", "val"),
    ],
)  # fmt: skip
def test_only_whole_words_name_splits(name: str, split: str | None) -> None:
    assert names.last_split(name) == split


def test_where_the_word_stands() -> None:
    assert names.first_split("test_en") == "test"
    assert names.last_split("test_en") is None
    assert names.whole_split("test_003") == "test"
    assert names.whole_split("how-to-test") is None
    assert names.split_in("test_sft") == "test"
    assert names.split_in("python") is None
    assert names.without_first_split("test_web") == "web"
    assert names.without_first_split("test-00000-of-00001") == "test-00000-of-00001"


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("code-test", "code"), ("code-test-00001-of-00002", "code"), ("test", ""), ("partial-validation", ""), ("web", "web"),
        ("dev-guide", "dev-guide"), ("web_held_out", "web"), ("c4-en-validation.00000-of-00008", "c4-en"), ("train", ""),
    ],
)  # fmt: skip
def test_what_is_left_without_the_split(name: str, rest: str) -> None:
    assert names.without_split(name) == rest


@pytest.mark.parametrize(
    ("stems", "domains"),
    [
        (["web-00000-of-00002", "web-00001-of-00002"], ["web", "web"]),
        (["web-00003-of-00007"], ["web"]),
        (["web_0", "web_1", "web_2"], ["web", "web", "web"]),
        (["web.01", "web.02"], ["web", "web"]),
        (["web_0", "web_1", "web_3"], ["web_0", "web_1", "web_3"]),
        (["wiki-20220301", "wiki-20240801"], ["wiki-20220301", "wiki-20240801"]),
        (["CC-MAIN-2013-20"], ["CC-MAIN-2013-20"]),
        (["c4-ar.00000-00001-00002"], ["c4-ar"]),
        (["pile_00_text_document", "pile_01_text_document"], ["pile", "pile"]),
        (["c4-af.tfrecord-00000-of-00001"], ["c4-af"]),
        (["code.train", "code"], ["code", "code"]),
        (["web-0-of-2", "web-1-of-3"], ["web-0-of-2", "web-1-of-3"]),
        (["00", "part-00001"], ["", ""]),
        (["000_00000", "001_00000"], ["", ""]),
        (["part-0-00000", "part-0-00001", "chunk1"], ["", "", ""]),
        (["web_1_of_2", "web_2_of_2"], ["web", "web"]),
    ],
)
def test_numbers_are_parts_only_of_a_set(stems: list[str], domains: list[str]) -> None:
    found, _ = names.parts_of_sets(stems)
    assert [found[stem] for stem in stems] == domains


def test_what_is_said_of_parts() -> None:
    assert names.parts_of_sets(["a_0", "a_1"])[1] == ["a is one domain of 2 parts"]
    assert names.parts_of_sets(["a-0-of-3", "a-1-of-3"])[1] == ["a: 2 of 3 parts are there"]
    assert "domains of their own" in names.parts_of_sets(["a-2013", "a-2014"])[1][0]
    assert names.parts_of_sets(["a", "b_7"])[1] == []


def test_held_out_files_find_their_domain() -> None:
    assert names.domain_of_held_out("c4-en-validation.00000-of-00008", ["c4-en"]) == "c4-en"
    assert names.domain_of_held_out("wiki-2022.test", ["wiki-2022"]) == "wiki-2022"
    assert names.domain_of_held_out("web_3.test", ["web"]) == "web"


def test_furniture() -> None:
    for name in (
        "README.md",
        "LICENSE",
        "SHA256SUMS.txt",
        "dataset_infos.json",
        "cache-0a.arrow",
        "x.sha256",
        "_SUCCESS",
    ):
        assert names.is_furniture(name), name
    for name in ("LICENSE-MIT", "web_README.md", "README.zh-CN.md", "label_mask.npy", "x_indexmap_3_doc_idx.npy"):
        assert names.is_furniture(name), name
    for name in (
        "license-plates.txt",
        "noticeboard.txt",
        "checksum-algorithms.md",
        "citations.jsonl.gz",
        "authors.jsonl",
    ):
        assert not names.is_furniture(name), name
    for name in ("readable.md", "0.jsonl", "code.json", "data.arrow", "notes.txt", "state.jsonl"):
        assert not names.is_furniture(name), name
