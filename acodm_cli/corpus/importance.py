"""Which mixture of the domains is most like a target: the one whose bigrams make the target's guide text most likely.

    guide text -> its labels, each after its token -> p_i(label | token) of each domain -> expectation maximisation -> weights

DSIR (2302.03169) chooses single documents by such statistics; here they weight whole domains.

Shape letters: K domains, N distinct bigrams of guide text, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.held_out import HeldOutText, spread
from acodm_cli.corpus.token_store import TokenStore

# At most so many tokens are read of a domain, and of all domains together, in slices; and so many labels of a target.
_TOKENS, _ALL_TOKENS, _SLICE, _LABELS = 1 << 21, 1 << 26, 1 << 14, 1 << 18
# A domain's unigrams count like so many observations of every token's successor, and all tokens alike like so many of them.
_BACK_OFF, _UNIFORM = 20.0, 100.0
# Expectation maximisation ends when no weight moves by more in an iteration, or after so many of them.
_MOVES, _ITERATIONS = 1e-6, 2000

Array = NDArray[np.float64]


def likeliest_mixture(corpus: Corpus, texts: Sequence[HeldOutText], shares: Sequence[float] | Array) -> Array:
    """Returns the weights w on the simplex that maximise Σ_n log Σ_i w_i p_i(n) over the counted labels of a text; of several
    texts, the mean of these weights. Of the same tokens the weights are the same. [K]

    shares: how much each text counts; they sum to 1."""
    size = corpus.tokenizer.padded_vocab_size
    found = [np.unique(_bigrams(text, size), return_counts=True) for text in texts]
    all_N = np.unique(np.concatenate([bigrams_N for bigrams_N, _ in found]))
    budget = min(_TOKENS, _ALL_TOKENS // len(corpus.domains))
    likelihoods_KN = np.stack([_likelihoods(domain.train, all_N, size, budget) for domain in corpus.domains])
    mixtures = [_maximise(likelihoods_KN[:, np.searchsorted(all_N, each_N)], counts_N) for each_N, counts_N in found]
    return np.average(mixtures, axis=0, weights=shares)


def _bigrams(text: HeldOutText, size: int) -> NDArray[np.int64]:
    """Returns token · V + label for the counted labels of sequences that are spread over a text. size: V."""
    rows = spread(len(text), max(1, _LABELS // text.counted_NT.shape[1]))
    tokens_NU, counted_NT = text.tokens_NU[rows].astype(np.int64), text.counted_NT[rows]
    return (tokens_NU[:, :-1] * size + tokens_NU[:, 1:])[counted_NT]


def _likelihoods(store: TokenStore, bigrams_N: NDArray[np.int64], size: int, budget: int) -> Array:
    """Returns p(label | token) of bigrams in a domain: their share among the token's successors, backed off to the label's
    share of all tokens, and that to 1 / V. size: V. budget: how many tokens are read. [N]"""
    slices = -(-min(budget, len(store)) // _SLICE)
    width = min(budget, len(store)) // slices
    together_N, alone_V = np.zeros(len(bigrams_N)), np.zeros(size)
    for number in range(slices):
        tokens = store.slice(len(store) * number // slices, width).astype(np.int64)
        read = tokens[:-1] * size + tokens[1:]
        places = np.searchsorted(bigrams_N, read).clip(max=len(bigrams_N) - 1)
        together_N += np.bincount(places[bigrams_N[places] == read], minlength=len(bigrams_N))
        alone_V += np.bincount(tokens, minlength=size)
    tokens_N, labels_N = np.divmod(bigrams_N, size)
    shares_V = (alone_V + _UNIFORM / size) / (alone_V.sum() + _UNIFORM)
    return (together_N + _BACK_OFF * shares_V[labels_N]) / (alone_V[tokens_N] + _BACK_OFF)


def _maximise(likelihoods_KN: Array, counts_N: NDArray[np.int64]) -> Array:
    """Returns the weights that make counted bigrams most likely, by expectation maximisation from uniform ones. [K]"""
    weights_K = np.full(len(likelihoods_KN), 1 / len(likelihoods_KN))
    for _ in range(_ITERATIONS):
        before_K = weights_K
        weights_K = before_K * (likelihoods_KN @ (counts_N / (before_K @ likelihoods_KN))) / counts_N.sum()
        if np.abs(weights_K - before_K).max() < _MOVES:
            break
    return weights_K
