"""The settings of the corpus: which text, which tokenizer, and where tokens are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from acodm_cli.settings import setting


@dataclass(frozen=True)
class TargetSettings:
    """What the model should become good at, besides or instead of the mean over domains."""

    PANEL: ClassVar = "Targets"

    target: tuple[str, ...] = setting((), changeable=True)
    """Text that the model should become good at: NAME=PATH or PATH, a file or folder of text, JSONL or Parquet. The option may be
    given several times. It is never trained on: one half guides the mixture, losses are reported on the other."""

    target_weight: dict[str, str] | None = setting(None)
    """How much a target counts beside the others: NAME=2. Default: 1."""

    guide: Literal["targets", "domains"] = "targets"
    """What rewards the mixture: the targets, if there are any; or the held-out text of all domains alike, so that a domain that
    is only memorised is not rewarded. Targets are then measured only."""

    target_balance: Literal["sum", "robust"] = "sum"
    """sum: the weighted sum of the targets' losses; robust: those that improve least count more."""

    target_text_field: str | None = setting(None)
    """The field with the text of a target's records, or with the answer if there are prompts. Default: --text-field."""

    target_prompt_field: str | None = setting(None)
    """The field with the prompt of a target's records. Then only the tokens of the answer count."""

    keep: tuple[str, ...] = setting(())
    """What the model of --init-from must not forget: the name of a domain or target, or several with commas between them. The
    option may be given several times. The mixture is then for the other targets, or else for the other domains."""

    keep_budget: float = setting(0.02, above=0, most=10)
    """How far the held-out loss of what is kept may rise above what it was before training, as a share of that."""

    guide_every: int = setting(8, least=1)
    """The number of steps between looks at the gradients of what guides."""

    guide_sequences: int | None = setting(None, least=1)
    """The number of held-out sequences in such a look. Default: a sixteenth of the batch, at least one per target."""


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
