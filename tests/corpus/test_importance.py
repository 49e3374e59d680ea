"""Synthetic domains: each is a chain of its own over the same tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.held_out import HeldOutText, make_text
from acodm_cli.corpus.importance import likeliest_mixture
from acodm_cli.corpus.token_store import DomainStore, TokenStore

TOKENS, DOMAINS = 60, 4


def chain(domain: int, length: int, seed: int) -> np.ndarray:
    """Tokens that follow each other by the domain's own probabilities."""
    successors_VV = np.random.default_rng(domain).dirichlet(np.full(TOKENS, 0.3), TOKENS).cumsum(axis=1)
    token, tokens = 0, []
    for draw in np.random.default_rng(seed).random(length):
        token = min(int(np.searchsorted(successors_VV[token], draw)), TOKENS - 1)
        tokens.append(token)
    return np.array(tokens, np.int32)


@pytest.fixture(scope="module")
def chains(corpus: Corpus) -> Corpus:
    stores = [TokenStore(chain(domain, 40_000, 1)) for domain in range(DOMAINS)]
    return replace(corpus, domains=[DomainStore(str(n), store, store, str(n)) for n, store in enumerate(stores)])


def text_of(corpus: Corpus, **tokens_of: int) -> HeldOutText:
    """Sequences of 41 tokens of some domains. tokens_of: d0=820 for 20 of domain 0."""
    rows = [chain(int(name[1:]), count, 2).reshape(-1, 41) for name, count in tokens_of.items()]
    tokens_NU = np.concatenate(rows)
    counted_NT = np.ones((len(tokens_NU), 40), bool)
    return make_text("text", tokens_NU, counted_NT, counted_NT.astype(np.int32), corpus.tokenizer.token_bytes_V)


def test_a_mixture_of_two_is_recovered(chains: Corpus) -> None:
    found_K = likeliest_mixture(chains, [text_of(chains, d1=4100 * 7 // 10, d3=4100 * 3 // 10)], [1.0])
    assert found_K == pytest.approx([0, 0.7, 0, 0.3], abs=0.05)
    assert found_K.sum() == pytest.approx(1)


def test_targets_of_one_domain_each_by_their_shares(chains: Corpus) -> None:
    texts = [text_of(chains, d0=2050), text_of(chains, d2=2050)]
    assert likeliest_mixture(chains, texts[:1], [1.0])[0] > 0.97
    found_K = likeliest_mixture(chains, texts, [0.25, 0.75])
    assert found_K == pytest.approx([0.25, 0, 0.75, 0], abs=0.03)
    assert np.array_equal(likeliest_mixture(chains, texts, [0.25, 0.75]), found_K), "the same again"


def test_only_counted_labels_tell(chains: Corpus) -> None:
    text = text_of(chains, d0=2050, d2=2050)
    text.counted_NT[50:] = False
    assert likeliest_mixture(chains, [text], [1.0])[0] > 0.97


def test_domains_are_read_all_over(chains: Corpus) -> None:
    """Also if they have several parts, are short, or change in the middle."""
    middle, short = [chain(0, 100_000, 1), chain(1, 100_000, 1), chain(0, 100_000, 1)], [chain(2, 500, 1)]
    stores = [TokenStore(*middle), TokenStore(*short), TokenStore(chain(3, 40_000, 1))]
    corpus = replace(chains, domains=[DomainStore(str(n), store, store, str(n)) for n, store in enumerate(stores)])
    assert likeliest_mixture(corpus, [text_of(corpus, d1=4100)], [1.0]).argmax() == 0
    assert likeliest_mixture(corpus, [text_of(corpus, d2=4100)], [1.0]).argmax() == 1
