"""Counts exact duplicates of documents, by the hashes that stores keep. Nothing is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acodm_cli.corpus.token_store import DomainStore

# Of more documents than this, those whose hash is below a bound stand for all; copies share a hash, so none are lost.
_MOST_DOCUMENTS = 1 << 21


@dataclass(frozen=True)
class Duplicates:
    """What was found. within: how many training documents are copies of an earlier one of their domain. across: how many
    are in more than one domain. leaked: how many validation documents are training documents of another domain.
    examples: two domains that share documents. estimated: whether the counts are from a sample."""

    within: int
    across: int
    leaked: int
    examples: tuple[str, str] | None
    estimated: bool

    def __str__(self) -> str:
        """One line, empty if there are none."""
        about = "about " if self.estimated else ""
        found = []
        if self.within:
            found.append(f"{about}{self.within:,} documents are copies of others of their domain")
        if self.across:
            pair = f", as in {self.examples[0]} and {self.examples[1]}" if self.examples else ""
            found.append(f"{about}{self.across:,} are in more than one domain{pair}")
        if self.leaked:
            found.append(f"{about}{self.leaked:,} validation documents are trained on in another domain")
        return "; ".join(found)


def count_duplicates(domains: Sequence[DomainStore]) -> Duplicates | None:
    """Counts the duplicates of a corpus; None if its documents are not known, as in files of tokens."""
    tables = [
        (number, domain.provenance.documents_N)
        for number, domain in enumerate(domains)
        if domain.provenance.documents_N is not None
    ]
    total = sum(len(table) for _, table in tables)
    if not total:
        return None
    share = min(1.0, _MOST_DOCUMENTS / total)
    bound = np.uint64(min(share * 2.0**64, 2.0**64 - 2048))
    chosen = [(number, table[table["hash"] <= bound]) for number, table in tables]
    hash_N = np.concatenate([table["hash"] for _, table in chosen])
    held_out_N = np.concatenate([table["held_out"] for _, table in chosen]).astype(bool)
    domain_N = np.concatenate([np.full(len(table), number) for number, table in chosen])
    real_N = hash_N != 0  # the ends of documents that were cut have no hash of their own
    _, group_N = np.unique(hash_N, return_inverse=True)
    trained_N = real_N & ~held_out_N
    pair_N = group_N * (len(domains) + 1) + domain_N
    trained_pairs = np.unique(pair_N[trained_N])
    domains_of_group = np.bincount(trained_pairs // (len(domains) + 1), minlength=len(hash_N))
    shared = np.flatnonzero(domains_of_group > 1)
    in_other_N = domains_of_group[group_N] - np.isin(pair_N, trained_pairs) > 0
    examples = None
    if len(shared):
        first = trained_pairs[trained_pairs // (len(domains) + 1) == shared[0]] % (len(domains) + 1)
        examples = domains[first[0]].name, domains[first[1]].name
    scale = 1 / share

    def scaled(count: int) -> int:
        return round(count * scale)

    return Duplicates(
        within=scaled(int(trained_N.sum()) - len(trained_pairs)),
        across=scaled(len(shared)),
        leaked=scaled(int((real_N & held_out_N & in_other_N).sum())),
        examples=examples,
        estimated=share < 1,
    )
