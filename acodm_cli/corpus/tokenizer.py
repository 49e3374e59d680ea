"""Loads tokenizers from a tokenizer.json or by a hub name, without running anyone's code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import in_short

END_OF_DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


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


def load_tokenizer(source: str) -> Tokenizer:
    """Loads a tokenizer from a tokenizer.json, a directory that holds one, or a name on the Hugging Face hub.

    Raises:
        UsageError: the tokenizer is not found, is not readable, or has no end-of-document token.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        if path.is_file():
            backend = tokenizers.Tokenizer.from_file(str(path))
        elif path.suffix == ".json" or source.startswith((".", "/", "~")):
            raise UsageError(f"tokenizer {source} does not exist; give a tokenizer.json or a hub name")
        else:
            backend = tokenizers.Tokenizer.from_pretrained(source)
    except AcodmError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UsageError(
            f"cannot load tokenizer {source}: {in_short(error)}; give a tokenizer.json or a hub name"
        ) from None
    backend.no_padding()
    backend.no_truncation()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    end = next((vocabulary[token] for token in END_OF_DOCUMENT_TOKENS if token in vocabulary), None)
    if end is None:
        known = ", ".join(END_OF_DOCUMENT_TOKENS)
        raise UsageError(f"tokenizer {source} has no end-of-document token (one of {known}); add one to it")
    return Tokenizer(
        backend=backend,
        name=path.name if path.is_file() else source,
        vocab_size=max(vocabulary.values()) + 1,
        end_of_document=end,
        fingerprint=hashlib.sha256(backend.to_str().encode()).hexdigest()[:16],
    )
