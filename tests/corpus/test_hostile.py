"""Corpora of strangers: they run nothing, read nothing outside of what they name, and take bounded memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acodm_cli.corpus import readers, store_writer
from acodm_cli.corpus.hub import _is_inside
from acodm_cli.corpus.readers import BadRecord, Document, Fields, read_documents, read_items
from acodm_cli.corpus.tokenizer import load_tokenizer
from acodm_cli.errors import UsageError
from tests.conftest import opened
from tests.corpus.test_layouts import put, records


def manifest(folder: Path, code: str) -> Path:
    put(folder / "web" / "0.jsonl", records("web"))
    put(folder / "m.toml", f'[domains.code]\n{code}\n[domains.web]\nfiles = "web/*"\n')
    return folder / "m.toml"


def card(folder: Path, path: str) -> None:
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {path}",
        "---",
    ]
    put(folder / "ds" / "README.md", "\n".join(lines))


@pytest.mark.parametrize("name", ["json", "text", "imagefolder", "http://localhost:1/x", "../x", "/nowhere", "a/b/c"])
def test_datasets_are_folders_or_names_of_the_hub(name: str, tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is neither a folder nor the name of a hub dataset"):
        opened(manifest(tmp_path, f'dataset = "{name}"'), tokenizer_file, tmp_path / "cache")


def test_a_folder_is_not_taken_for_a_hub_dataset(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "here" / "org" / "name" / "train.jsonl", records("Local"))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="is of the hub, but there is a folder of this name here"):
        opened(manifest(tmp_path / "there", 'dataset = "org/name"'), tokenizer_file, tmp_path / "cache")


@pytest.mark.parametrize("path", ["{secret}", "../../secret/*.jsonl"])
def test_a_dataset_names_no_files_outside_of_it(path: str, tokenizer_file: Path, tmp_path: Path) -> None:
    put(tmp_path / "secret" / "s.jsonl", records("Secret"))
    card(tmp_path / "data", path.format(secret=tmp_path / "secret" / "s.jsonl"))
    with pytest.raises(UsageError, match=r"names .*outside of the dataset"):
        opened(manifest(tmp_path / "data", 'dataset = "ds"'), tokenizer_file, tmp_path / "cache")


def test_a_script_is_not_run(tokenizer_file: Path, tmp_path: Path) -> None:
    put(tmp_path / "data" / "ds" / "ds.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UsageError, match="cannot stream dataset"):
        opened(manifest(tmp_path / "data", 'dataset = "ds"'), tokenizer_file, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_a_pattern_does_not_leave_through_links(tokenizer_file: Path, tmp_path: Path) -> None:
    put(tmp_path / "secret" / "s.jsonl", records("Secret"))
    data = manifest(tmp_path / "data", 'files = "code/*.jsonl"')
    (tmp_path / "data" / "code").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="is a link that leads out of"):
        opened(data, tokenizer_file, tmp_path / "cache")


def test_a_maze_of_links_ends(tokenizer_file: Path, tmp_path: Path) -> None:
    """Forty folders with two links each to the next: there are 2^40 ways through them, and each is a domain."""
    for number in range(40):
        put(tmp_path / f"d{number}" / "x.jsonl", records(f"d{number}"))
    for number in range(39):
        for name in "ab":
            (tmp_path / f"d{number}" / name).symlink_to(tmp_path / f"d{number + 1}")
    corpus = opened(tmp_path, tokenizer_file, tmp_path.parent / "cache")
    assert len(corpus.names) == 40
    assert len(corpus.account.said) == 39 * 2
    assert all(domain.provenance.files == 1 for domain in corpus.domains)


def test_what_is_no_file_is_not_opened(tokenizer_file: Path, tmp_path: Path) -> None:
    for name in ("code", "web"):
        put(tmp_path / "data" / name / "0.jsonl", records(name))
    os.mkfifo(tmp_path / "data" / "code" / "1.jsonl")
    corpus = opened(tmp_path / "data", tokenizer_file, tmp_path / "cache")
    assert [path.name for path in corpus.account.unread] == ["1.jsonl"]


def test_a_pipe_in_the_place_of_a_description_is_not_opened(tokenizer_file: Path, tmp_path: Path) -> None:
    for name in ("code", "web"):
        put(tmp_path / "data" / name / "0.jsonl", records(name))
    for name in ("state.json", "dataset_dict.json"):
        os.mkfifo(tmp_path / "data" / "code" / name)
    assert opened(tmp_path / "data", tokenizer_file, tmp_path / "cache").names == ["code", "web"]
    put(tmp_path / "tokens" / "a.bin", b"12")
    os.mkfifo(tmp_path / "tokens" / "a.idx")
    with pytest.raises(UsageError, match=r"a.idx: not a file"):
        opened(tmp_path / "tokens", tokenizer_file, tmp_path / "cache")


def test_names_that_a_terminal_would_obey_are_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    put(
        tmp_path / "x.jsonl",
        [{"text": "some words", "set": name} for name in ("web", "\x1b[31mred") for _ in range(30)],
    )
    with pytest.raises(UsageError, match=r"domain '\\x1b\[31mred' cannot be printed"):
        opened(tmp_path, tokenizer_file, tmp_path.parent / "cache", domain_field="set")


def test_a_state_of_datasets_leads_nowhere(tokenizer_file: Path, tmp_path: Path) -> None:
    put(tmp_path / "s.arrow", b"x")
    put(tmp_path / "data" / "code" / "state.json", json.dumps({"_data_files": [{"filename": "../../s.arrow"}]}))
    put(tmp_path / "data" / "web" / "0.jsonl", records("web"))
    with pytest.raises(UsageError, match=r"its file ../../s.arrow is not there"):
        opened(tmp_path / "data", tokenizer_file, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "0.jsonl.gz",
            b'{"text": "' + b"a" * 5000 + b'"}\n',
            r"0.jsonl.gz:1: a line of more than 0 MiB",
        ),
        ("0.json.xz", b'[{"text": "' + b"a" * 5000, r"0.json.xz: record 1: not valid JSON"),
        ("0.txt.bz2", b"a" * 5000, r"a text file is one document, of at most 0 MiB"),
        ("0.jsonl", b'{"text": "x", "a": ' + b"[" * 1_000_000, r"0.jsonl:1: a line of more"),
    ],
    ids=("line", "array", "text", "nested"),
)
def test_records_are_bounded(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 4096)
    monkeypatch.setattr(readers, "MAX_TEXT_BYTES", 4096)
    put(tmp_path / name, content)
    with pytest.raises(UsageError, match=message):
        list(read_documents(tmp_path / name))


def test_a_line_that_is_too_long_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 4096)
    lines = [json.dumps({"text": text}) for text in ("first", "long " * 100_000, "last")]
    (tmp_path / "0.jsonl").write_text("\n".join(lines))
    first, bad, last = read_items(tmp_path / "0.jsonl", Fields())
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert (first.text, last.text) == ("first", "last")
    assert isinstance(bad, BadRecord)
    assert (bad.where, str(bad)) == (f"{tmp_path / '0.jsonl'}:2", "a line of more than 0 MiB")


def test_text_far_beyond_the_size_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_EXPANSION_CHECKED", 1 << 16)
    table = pa.table(
        {"text": pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["a " * 20_000]))}
    )
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(UsageError, match="holds more than 500 times its size in text"):
        list(read_documents(tmp_path / "x.parquet"))


def test_an_array_of_objects_is_not_unpickled(tokenizer_file: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "a.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="an array of object"):
        opened(tmp_path / "data", tokenizer_file, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_a_long_document_is_tokenised_in_pieces(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(str(tokenizer_file))
    text = "\n".join(record["text"] + "\n  indented = 7" for record in records("long", 400))
    whole = tokenizer.backend.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(store_writer, "_ENCODE_CHARACTERS", 1000)
    assert len(list(store_writer._pieces(text))) > 10
    assert store_writer._ids_of([text], tokenizer)[0].tolist() == whole


def test_no_file_within_another_is_a_datasets_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From inside of the dataset, such a name resolves to below it."""
    monkeypatch.chdir(tmp_path)
    assert _is_inside(str(tmp_path / "train.jsonl"), str(tmp_path), None)
    for file in ("zip://s.jsonl::/etc/x.zip", "http://example.org/s.jsonl", f"zip://s.jsonl::{tmp_path}/../x.zip"):
        assert not _is_inside(file, str(tmp_path), None)
