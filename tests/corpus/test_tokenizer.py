from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers

from acodm_cli.corpus.tokenizer import load_tokenizer
from acodm_cli.errors import UsageError


@pytest.fixture
def folder(tokenizer_file: Path, tmp_path: Path) -> Path:
    """A tokenizer with three special tokens, of which its configuration has to choose."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_special_tokens(["</s>", "<|stop|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("configuration", "end"),
    [
        (None, "<|endoftext|>"),
        ({"eos_token": "</s>"}, "</s>"),
        ({"eos_token": {"content": "<|stop|>", "special": True}}, "<|stop|>"),
        ({"eos_token": None}, "<|endoftext|>"),
    ],
)
def test_documents_end_with_the_tokenizers_own_token(folder: Path, configuration: object, end: str) -> None:
    if configuration is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    assert load_tokenizer(str(folder)).end_text == end
    assert load_tokenizer(str(folder / "tokenizer.json")).end_text == end
    assert load_tokenizer(str(folder), "<|stop|>").end_text == "<|stop|>"
    # A file of another name lies beside configurations that need not be its own.
    shutil.copy(folder / "tokenizer.json", folder / "mine.json")
    assert load_tokenizer(str(folder / "mine.json")).end_text == "<|endoftext|>"


def test_an_end_that_the_vocabulary_lacks(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no token '<none>', which --eos-token names"):
        load_tokenizer(str(folder), "<none>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eot>"}))
    with pytest.raises(
        UsageError, match=r"no token '<eot>', which its configuration names; name another with --eos-token"
    ):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokenizer.model", "no tokenizer.json but a sentencepiece model; convert it once with python -c"),
        ("merges.txt", "no tokenizer.json but a vocabulary and its merges; convert it"),
        ("config.json", "is a folder without tokenizer.json"),
    ],
)
def test_other_forms_are_named(file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"\n\x0e")
    with pytest.raises(UsageError, match=message):
        load_tokenizer(str(tmp_path))


def test_special_tokens_in_text_are_text(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.end_of_document not in tokenizer.backend.encode("quotes <|endoftext|> here").ids
