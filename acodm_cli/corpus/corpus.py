"""A corpus: an ordered set of named domains with a training and a validation store each."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus.cache import cache_folder, remove_left_over
from acodm_cli.corpus.duplicates import Duplicates, count_duplicates
from acodm_cli.corpus.embedded import embedded_corpus
from acodm_cli.corpus.files import Account
from acodm_cli.corpus.readers import PLAIN, Fields, is_unicode
from acodm_cli.corpus.settings import CorpusSettings
from acodm_cli.corpus.sources import CorpusPlan, TargetPlan, plan_corpus
from acodm_cli.corpus.store_writer import OnProgress
from acodm_cli.corpus.token_store import DomainStore, open_source
from acodm_cli.corpus.tokenizer import Tokenizer, load_tokenizer
from acodm_cli.errors import UsageError
from acodm_cli.writing import few


@dataclass(frozen=True)
class Corpus:
    """Domains of tokens, and the tokenizer that made them.

    name: the name that people see. domains: in the order of every [K] in a run. weights: the prior weight of each
    domain as the manifest gives it, not normalised; empty if it gives none. upsampling: how often the tokens of a
    domain count; they count once if the domain is not named. account: what became of files that are not read. bad: how
    many records were left out. warnings: what the user should know. targets: those that the manifest names. keep: the domains and
    targets that it says must not be forgotten."""

    name: str
    tokenizer: Tokenizer
    domains: list[DomainStore]
    weights: dict[str, float] = field(default_factory=dict)
    upsampling: dict[str, float] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    bad: int = 0
    warnings: list[str] = field(default_factory=list)
    targets: list[TargetPlan] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The names of the domains, in order."""
        return [domain.name for domain in self.domains]

    @property
    def tokens_K(self) -> NDArray[np.float64]:
        """The number of training tokens per domain."""
        return np.array([len(domain.train) for domain in self.domains], dtype=np.float64)

    @property
    def upsampled_tokens_K(self) -> NDArray[np.float64]:
        """The number of training tokens per domain, times how often they count."""
        return self.tokens_K * np.array([self.upsampling.get(name, 1.0) for name in self.names])

    def num_sequences(self, seq_len: int, share: float = 1.0) -> NDArray[np.int64]:
        """The number of training sequences per domain, of a share of each: at least one. [K]"""
        sizes_K = np.array([domain.train.num_sequences(seq_len) for domain in self.domains], dtype=np.int64)
        return sizes_K if share == 1 else np.rint(share * sizes_K).astype(np.int64).clip(1)

    def duplicates(self) -> Duplicates | None:
        """Counts the exact duplicates of documents; None if documents are not known, as in files of tokens."""
        return count_duplicates(self.domains)

    @property
    def fingerprint(self) -> str:
        """A hash of the domains' names and tokens. It does not depend on how they are stored or ordered."""
        parts = sorted(f"{domain.name}={domain.key}" for domain in self.domains)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def check_sequences(self, seq_len: int) -> None:
        """Raises UsageError if a split of a domain is shorter than one sequence of seq_len + 1 tokens."""
        for domain in self.domains:
            for split, store in (("training", domain.train), ("validation", domain.validation)):
                if store.num_sequences(seq_len) < 1:
                    raise UsageError(
                        f"domain {domain.name} has {len(store):,} {split} tokens, less than one sequence of "
                        f"{seq_len} + 1; give it more text, lower --seq-len, or remove the domain"
                    )

    def in_order_of(self, names: list[str]) -> Corpus:
        """Returns the same corpus with its domains in another order. names: all of their names."""
        by_name = {domain.name: domain for domain in self.domains}
        assert set(names) == set(by_name)
        return replace(self, domains=[by_name[name] for name in names])


def open_corpus(
    settings: CorpusSettings, on_progress: OnProgress = lambda *_: None, seq_len: int | None = None
) -> Corpus:
    """Opens the corpus of --data (see `sources`), or the embedded default corpus.

    on_progress: told of tokenisation. seq_len: where validation text is held out, at least one sequence of this length
    is, if there is enough text.

    Raises:
        UsageError: the data or the tokenizer cannot be used as given.
        AcodmError: the cache cannot be written.
    """
    cache = cache_folder(settings.cache_dir)
    for folders in ("tokens", "embedded"):
        remove_left_over(cache / folders)
    if settings.data is None:
        folder, own_tokenizer = embedded_corpus(cache, on_progress)
        plan = replace(plan_corpus(str(folder), PLAIN), name="embedded")
        tokenizer = load_tokenizer(settings.tokenizer or str(own_tokenizer), settings.eos_token)
    else:
        fields = Fields(settings.text_field, settings.domain_field)
        plan = plan_corpus(settings.data, fields, settings.domain_tokens, settings.follow_links)
        if settings.tokenizer is None:
            raise UsageError("--data needs --tokenizer: a tokenizer.json or a hub name such as EleutherAI/gpt-neox-20b")
        tokenizer = load_tokenizer(settings.tokenizer, settings.eos_token)
    domains: list[DomainStore] = []
    bad = 0
    examples: list[str] = []
    blank: list[str] = []
    fruitless: list[Path] = []
    for source in plan.sources:
        opened = open_source(source, tokenizer, cache, on_progress, settings.skip_bad - bad, seq_len)
        domains += opened.domains
        bad += opened.bad
        examples += opened.examples
        blank += opened.blank
        fruitless += opened.fruitless
        if bad > settings.skip_bad:  # stored by a run that left out more
            raise UsageError(
                f"{bad} records cannot be used, such as {examples[0]}; leave them out with --skip-bad {bad}"
            )
    _check_domains(plan, domains)
    warnings = [*plan.account.warnings, *(warning for domain in domains for warning in domain.provenance.warnings)]
    if bad:
        warnings.append(f"{bad} records were left out: {'; '.join(examples[:3])}{'; …' if bad > 3 else ''}")
    if fruitless:
        warnings.append(f"files without any document: {few(list(map(str, fruitless)))} ({len(fruitless)})")
    if blank:
        warnings.append(f"domains left out, because none of their documents has text: {', '.join(blank[:5])}")
    return Corpus(
        plan.name,
        tokenizer,
        domains,
        plan.weights,
        plan.upsampling,
        plan.account,
        bad,
        warnings,
        plan.targets,
        plan.keep,
    )


def _check_domains(plan: CorpusPlan, domains: list[DomainStore]) -> None:
    twice = [name for name, count in Counter(domain.name for domain in domains).items() if count > 1]
    if twice:
        raise UsageError(f"{plan.name} has two domains named {twice[0]}; rename one")
    if len(domains) < 2:
        raise UsageError(f"{plan.name} has one domain only ({domains[0].name}); a mixture needs at least two")
    for domain in domains:
        if not is_unicode(domain.name) or not domain.name.isprintable():
            raise UsageError(f"the name of domain {domain.name!a} cannot be printed; rename it")
        if not len(domain.train):
            raise UsageError(f"domain {domain.name} has no training text; give it some, or remove it")
