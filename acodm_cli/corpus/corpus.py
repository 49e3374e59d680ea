"""A corpus: an ordered set of named domains with a training and a validation store each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from acodm_cli.corpus.embedded import embedded_corpus
from acodm_cli.corpus.sources import discover_domains
from acodm_cli.corpus.token_store import DomainStore, OnProgress, open_domain
from acodm_cli.corpus.tokenizer import Tokenizer, load_tokenizer
from acodm_cli.errors import ScheduleError, UsageError


@dataclass(frozen=True)
class Corpus:
    """name: for people. domains: in order; this order is that of every [K] in a run."""

    name: str
    tokenizer: Tokenizer
    domains: list[DomainStore]

    @property
    def names(self) -> list[str]:
        return [domain.name for domain in self.domains]

    @property
    def tokens_K(self) -> NDArray[np.float64]:
        """Training tokens per domain."""
        return np.array([len(domain.train) for domain in self.domains], dtype=np.float64)

    @property
    def fingerprint(self) -> str:
        """Of the domains' names, contents and the tokenizer."""
        parts = [f"{domain.name}={domain.key}" for domain in self.domains]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def check_sequences(self, seq_len: int) -> None:
        """Raises UsageError if a domain's split has less than one sequence of seq_len + 1 tokens."""
        for domain in self.domains:
            for split, store in (("training", domain.train), ("validation", domain.validation)):
                if store.num_sequences(seq_len) < 1:
                    raise UsageError(
                        f"domain {domain.name} has {len(store):,} {split} tokens, less than one sequence of "
                        f"{seq_len} + 1; give it more text, lower --seq-len, or remove the domain"
                    )

    def in_order_of(self, names: list[str]) -> Corpus:
        """The same corpus with its domains in a schedule's order.

        Raises:
            ScheduleError: the schedule's domains are not the corpus's.
        """
        if set(names) != set(self.names):
            raise ScheduleError(
                f"the schedule's domains do not match the corpus; schedule: {', '.join(sorted(names))}; corpus: "
                f"{', '.join(sorted(self.names))}; give the corpus it was learned on with --data"
            )
        by_name = {domain.name: domain for domain in self.domains}
        return replace(self, domains=[by_name[name] for name in names])


def cache_folder(cache_dir: str | None) -> Path:
    return Path(cache_dir).expanduser() if cache_dir else Path(platformdirs.user_cache_dir("acodm"))


def open_corpus(
    data: str | None, tokenizer: str | None, cache_dir: str | None, on_progress: OnProgress = lambda *_: None
) -> Corpus:
    """The corpus in folder `data`, or the embedded default corpus.

    Raises:
        UsageError: the data or the tokenizer cannot be used as given.
    """
    cache = cache_folder(cache_dir)
    if data is None:
        folder, own_tokenizer = embedded_corpus(cache, on_progress)
        name = "embedded"
    else:
        folder, own_tokenizer, name = Path(data), None, Path(data).expanduser().resolve().name
    source = tokenizer or (str(own_tokenizer) if own_tokenizer else None)
    files = discover_domains(str(folder))
    if source is None:
        raise UsageError("--data needs --tokenizer: a tokenizer.json or a hub name such as EleutherAI/gpt-neox-20b")
    loaded = load_tokenizer(source)
    return Corpus(name, loaded, [open_domain(domain, loaded, cache, on_progress) for domain in files])
