"""The settings of the corpus: which text, which tokenizer, and where tokens are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from acodm_cli.settings import setting


@dataclass(frozen=True)
class CorpusSettings:
    """What a corpus is made of."""

    PANEL: ClassVar = "Corpus"

    data: str | None = setting(None, changeable=True)
    """The corpus: a folder with a sub-folder or file per domain (.jsonl, .parquet, .arrow, .txt, also compressed; tokens in
    .bin with .idx, .npy, .ds), files with --domain-field, a manifest (.toml), or a hub dataset (org/name). Default: an
    embedded corpus that needs no network."""

    tokenizer: str | None = setting(None, changeable=True)
    """The tokenizer: a tokenizer.json or a hub name. It is needed with --data."""

    domain_field: str | None = None
    """The field with each record's domain, such as meta.pile_set_name."""

    text_field: str = "text"
    """The field with each record's text."""

    eos_token: str | None = None
    """The token that ends documents. Default: the tokenizer's own."""

    domain_tokens: int | None = setting(None, least=1)
    """The number of tokens per domain to take of a hub dataset."""

    skip_bad: int = setting(0, least=0)
    """Leave out up to so many records that cannot be used, and say which; one more is an error."""

    follow_links: bool = setting(False)
    """Follow links that lead out of the folder of --data."""

    cache_dir: str | None = setting(None, changeable=True)
    """The folder where tokenised corpora are kept. Default: the user cache folder."""
