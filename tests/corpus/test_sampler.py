from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.sampler import Sampler, apportion, permuted


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


def test_permutation_looks_random() -> None:
    order = permuted(np.arange(10_000), 10_000, 5)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert (order == np.arange(10_000)).sum() < 10


def test_permutation_of_a_billion_is_immediate() -> None:
    values = permuted(np.arange(5), 1_000_000_000, 1)
    assert len(set(values.tolist())) == 5
    assert (values < 1_000_000_000).all()


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=30), st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_counts_follow_constant_weights(raw: list[float], batch: int) -> None:
    weights_K = np.array(raw) / sum(raw)
    drawn_K = np.zeros(len(raw), dtype=np.int64)
    for step in range(1, 80):
        counts_K = apportion(step * batch * weights_K - drawn_K, batch)
        assert counts_K.sum() == batch
        assert (counts_K >= 0).all()
        drawn_K += counts_K
        assert np.abs(step * batch * weights_K - drawn_K).max() < 1


def test_small_domain_is_not_starved(corpus: Corpus) -> None:
    sampler = Sampler(corpus, batch=8, seq_len=16, seed=0)
    weights_K = np.array([0.97, 0.01, 0.01, 0.01])
    drawn_K = sum(sampler.draw(weights_K).samples_K for _ in range(100))
    assert np.abs(drawn_K - 800 * weights_K).max() < 1


def test_no_repetition_within_an_epoch_and_a_new_order_in_the_next(corpus: Corpus) -> None:
    sampler = Sampler(corpus, batch=4, seq_len=16, seed=0)
    size = int(sampler.sizes_K[0])
    first, second = sampler._indices(0, 0, size), sampler._indices(0, size, size)
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    across = sampler._indices(0, size - 3, 6)
    assert across == first[-3:] + second[:3]


def test_batch_matches_its_labels(corpus: Corpus) -> None:
    sampler = Sampler(corpus, batch=16, seq_len=16, seed=0)
    batch = sampler.draw(np.array([0.4, 0.3, 0.2, 0.1]))
    assert batch.tokens_BS.shape == (16, 17)
    assert np.bincount(batch.domains_B, minlength=4).tolist() == batch.samples_K.tolist()
    for tokens_S, domain in zip(batch.tokens_BS, batch.domains_B.tolist(), strict=True):
        stream = corpus.domains[domain].train.tokens
        starts = range(0, len(stream) - 16, 16)
        assert any(torch.equal(tokens_S, torch.from_numpy(stream[s : s + 17].astype(np.int64))) for s in starts)
    # Domains are mixed over the batch, so that micro-batches are mixed too.
    assert batch.domains_B.tolist() != sorted(batch.domains_B.tolist())


@pytest.mark.parametrize("stop", [1, 7])
def test_resumes_exactly(corpus: Corpus, stop: int) -> None:
    def weights(step: int) -> np.ndarray:
        return np.random.default_rng(step).dirichlet(np.ones(4))

    whole = Sampler(corpus, 6, 16, seed=1)
    batches = [whole.draw(weights(step)) for step in range(10)]
    first = Sampler(corpus, 6, 16, seed=1)
    for step in range(stop):
        first.draw(weights(step))
    second = Sampler(corpus, 6, 16, seed=1)
    second.load_state_dict(first.state_dict())
    for step in range(stop, 10):
        assert torch.equal(second.draw(weights(step)).tokens_BS, batches[step].tokens_BS)
