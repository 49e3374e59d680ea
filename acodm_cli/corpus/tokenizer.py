"""Loads tokenizers from a tokenizer.json or by a hub name, without running anyone's code."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import in_short

# What ends documents if the tokenizer's own configuration does not say it; the first that the vocabulary has.
END_OF_DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_CONFIGURATIONS = ("tokenizer_config.json", "special_tokens_map.json")
_ONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
_LARGEST_CONFIGURATION = 1 << 26
# Tokenizers in forms that cannot be loaded without other packages, by the files that they consist of.
_OTHER_FORMS = {
    "a sentencepiece model": ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    "a vocabulary and its merges": ("vocab.json", "merges.txt"),
    "a vocabulary": ("vocab.txt",),
}


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer. name: as the user gave it, without directories. vocab_size: all token ids are below it.
    end_of_document: the id of the token after each document. fingerprint: a hash of the whole definition."""

    backend: tokenizers.Tokenizer
    name: str
    vocab_size: int
    end_of_document: int
    fingerprint: str

    @property
    def padded_vocab_size(self) -> int:
        """The vocabulary size rounded up to a multiple of 128, as GPT-NeoX does: 50,277 tokens become 50,304 rows."""
        return -(-self.vocab_size // 128) * 128

    @cached_property
    def token_bytes_V(self) -> NDArray[np.int64]:
        """The bytes of text that each token stands for; none for special tokens. [V]

        These are the bytes after the tokenizer's own normalisation. Tokens of byte-level tokenizers have a character per byte;
        others write spaces as a bar, and single bytes as <0xNN>."""
        definition = json.loads(self.backend.to_str())
        special = {each["id"] for each in definition.get("added_tokens", []) if each.get("special")}
        added = {each["id"] for each in definition.get("added_tokens", [])}
        byte_level = '"ByteLevel"' in json.dumps([definition.get("pre_tokenizer"), definition.get("decoder")])
        sizes_V = np.zeros(self.vocab_size, np.int64)
        for token, number in self.backend.get_vocab(with_added_tokens=True).items():
            if number in special or number == self.end_of_document:
                continue
            if number in added or not byte_level:
                one_byte = _ONE_BYTE.fullmatch(token) is not None
                sizes_V[number] = 1 if one_byte else len(token.replace("\u2581", " ").encode(errors="replace"))
            else:
                sizes_V[number] = len(token)
        return sizes_V

    @property
    def end_text(self) -> str:
        """The end-of-document token as text."""
        return str(self.backend.id_to_token(self.end_of_document))


def load_tokenizer(source: str, eos_token: str | None = None) -> Tokenizer:
    """Loads a tokenizer from a tokenizer.json, a directory that holds one, or a name on the Hugging Face hub.

    Text is never read as special tokens: a document that quotes one does not end there.

    eos_token: the token that ends documents; None for the one that the tokenizer's configuration names, or else the first
    of END_OF_DOCUMENT_TOKENS that the vocabulary has.

    Raises:
        UsageError: the tokenizer is not found, is not readable, or has no such end-of-document token.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        _check_form(path)
        path = path / "tokenizer.json"
    local = path.is_file()
    try:
        if local and path.suffix == ".model":
            raise UsageError(_in_other_form(f"tokenizer {source} is", "a sentencepiece model", path.parent))
        if local:
            backend = tokenizers.Tokenizer.from_file(str(path))
        elif path.suffix == ".json" or source.startswith((".", "/", "~")):
            raise UsageError(f"tokenizer {source} does not exist; give a tokenizer.json or a hub name")
        else:
            backend = tokenizers.Tokenizer.from_pretrained(source)
    except AcodmError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UsageError(
            f"cannot load tokenizer {source}: {in_short(error)}; give a tokenizer.json or a hub name that has one"
        ) from None
    backend.no_padding()
    backend.no_truncation()
    fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()[:16]
    backend.encode_special_tokens = True
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if eos_token is None:
        eos_token = _own_eos_token(path if local else None, source)
        whose = "its configuration names"
    else:
        whose = "--eos-token names"
    if eos_token is not None and eos_token not in vocabulary:
        raise UsageError(f"tokenizer {source} has no token {eos_token!r}, which {whose}; name another with --eos-token")
    end = eos_token or next((token for token in END_OF_DOCUMENT_TOKENS if token in vocabulary), None)
    if end is None:
        known = ", ".join(END_OF_DOCUMENT_TOKENS)
        raise UsageError(
            f"tokenizer {source} has no end-of-document token (one of {known}); name one of its tokens with --eos-token"
        )
    return Tokenizer(
        backend=backend,
        name=path.name if local else source,
        vocab_size=max(vocabulary.values()) + 1,
        end_of_document=vocabulary[end],
        fingerprint=fingerprint,
    )


def _check_form(folder: Path) -> None:
    """Raises UsageError if a folder has no tokenizer.json, and says what it has instead."""
    if (folder / "tokenizer.json").is_file():
        return
    for form, files in _OTHER_FORMS.items():
        if any((folder / name).is_file() for name in files):
            raise UsageError(_in_other_form(f"tokenizer {folder} has no tokenizer.json but", form, folder))
    raise UsageError(f"tokenizer {folder} is a folder without tokenizer.json; give one that has it, or a hub name")


def _in_other_form(what: str, form: str, folder: Path) -> str:
    return (
        f'{what} {form}; convert it once with python -c "from transformers import AutoTokenizer; '
        f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _own_eos_token(path: Path | None, source: str) -> str | None:
    """The eos_token of the configuration beside a tokenizer.json, or of a hub repository; None if it names none."""
    if path is not None and path.name != "tokenizer.json":  # such a file lies beside others' configurations
        return None
    for name in _CONFIGURATIONS:
        token = _configuration(path.parent / name if path is not None else _of_hub(source, name)).get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token:
            return token
    return None


def _of_hub(source: str, name: str) -> Path | None:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(source, name))
    except Exception:  # the hub's errors have no common base class; the repository may not have this file
        return None


def _configuration(path: Path | None) -> dict[str, Any]:
    """The content of a JSON file, empty if there is none. Raises UsageError if it cannot be read."""
    try:
        if path is None or not path.is_file():
            return {}
        if path.stat().st_size > _LARGEST_CONFIGURATION:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}, which names the end of documents, cannot be read ({in_short(error)}); mend it, or name the token with --eos-token") from None  # fmt: skip
    return content if isinstance(content, dict) else {}
