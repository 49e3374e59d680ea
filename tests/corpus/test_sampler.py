from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.sampler import Sampler, apportion, cap_weights, permuted


def permute(size: int, key: int, positions: int | None = None) -> np.ndarray:
    count = size if positions is None else positions
    return permuted(np.arange(count), np.full(count, size), np.full(count, key, np.uint64))


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(size, key)) == list(range(size))


def test_permutation_looks_random() -> None:
    order = permute(10_000, 5)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert (order == np.arange(10_000)).sum() < 10


def test_permutation_of_a_billion_is_immediate() -> None:
    values = permute(1_000_000_000, 1, 5)
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
        assert np.abs(step * batch * weights_K - drawn_K).max() < 1 + np.log(len(weights_K))


def test_small_domain_is_not_starved(corpus: Corpus) -> None:
    sampler = Sampler(corpus, batch=8, seq_len=16, seed=0)
    weights_K = np.array([0.97, 0.01, 0.01, 0.01])
    drawn_K = sum(sampler.draw(weights_K).samples_K for _ in range(100))
    assert np.abs(drawn_K - 800 * weights_K).max() < 1


def test_no_repetition_within_an_epoch_and_a_new_order_in_the_next(corpus: Corpus) -> None:
    sampler = Sampler(corpus, batch=5, seq_len=16, seed=0)
    seen: list[list[int]] = [[] for _ in corpus.names]
    generator = np.random.default_rng(0)
    while sampler.epochs_K.min() < 2.2:
        domains_B, indices_B, _ = sampler.pick(generator.dirichlet(np.ones(4)))
        by_domain: dict[int, set[int]] = {}
        for domain, index in zip(domains_B.tolist(), indices_B.tolist(), strict=True):
            seen[domain].append(index)
            by_domain.setdefault(domain, set()).add(index)
    for domain, size in enumerate(sampler.sizes_K.tolist()):
        epochs = [sorted(seen[domain][start : start + size]) for start in (0, size)]
        assert epochs[0] == epochs[1] == list(range(size))
        assert seen[domain][:size] != seen[domain][size : 2 * size]


def test_batch_matches_its_labels(corpus: Corpus) -> None:
    sampler = Sampler(corpus, batch=16, seq_len=16, seed=0)
    batch = sampler.draw(np.array([0.4, 0.3, 0.2, 0.1]))
    assert batch.tokens_BU.shape == (16, 17)
    assert np.bincount(batch.domains_B, minlength=4).tolist() == batch.samples_K.tolist()
    for tokens_S, domain in zip(batch.tokens_BU, batch.domains_B.tolist(), strict=True):
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
        assert torch.equal(second.draw(weights(step)).tokens_BU, batches[step].tokens_BU)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_what_one_rank_draws(corpus: Corpus, world_size: int) -> None:
    alone = Sampler(corpus, 8, 16, seed=3)
    ranks = [Sampler(corpus, 8, 16, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(12):
        weights_K = np.random.default_rng(step).dirichlet(np.ones(4))
        expected = alone.draw(weights_K)
        shares = [sampler.draw(weights_K) for sampler in ranks]
        assert torch.equal(torch.cat([share.tokens_BU for share in shares]), expected.tokens_BU)
        for share in shares:
            assert torch.equal(share.domains_B, expected.domains_B)
            assert torch.equal(share.tokens_BU, expected.tokens_BU[share.rows])


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_counts_follow_changing_weights(num_domains: int, batch: int, seed: int) -> None:
    """Random weights that change every step, some of them zero; and an adversary who feeds the largest debts."""
    generator = np.random.default_rng(seed)
    for adversary in (False, True):
        expected_K, drawn_K = np.zeros(num_domains), np.zeros(num_domains, dtype=np.int64)
        for _ in range(120):
            if adversary:
                owed = expected_K - drawn_K
                weights_K = (owed >= np.quantile(owed, generator.uniform(0, 0.95))).astype(float)
            else:
                weights_K = generator.exponential(size=num_domains) * (generator.random(num_domains) < 0.7)
                weights_K[generator.integers(num_domains)] += 0.1
            expected_K += batch * weights_K / weights_K.sum()
            counts_K = apportion(expected_K - drawn_K, batch)
            assert counts_K.sum() == batch
            assert (counts_K >= 0).all()
            drawn_K += counts_K
            debt_K = expected_K - drawn_K
            assert debt_K.min() > -1 - 1e-9
            assert debt_K.max() < 1 + np.log(num_domains)


@given(st.integers(2, 30), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_capped_weights_stay_on_the_simplex_and_below_their_caps(num_domains: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights_K = generator.dirichlet(np.full(num_domains, 0.3))
    most_K = generator.random(num_domains) * (generator.random(num_domains) < 0.7)
    most_K *= (1 + generator.random()) / max(most_K.sum(), 1e-9) if most_K.any() else 0
    if most_K.sum() < 1:
        return
    capped_K = cap_weights(weights_K, most_K)
    assert capped_K.sum() == pytest.approx(1)
    assert (capped_K <= most_K + 1e-12).all()
    free = capped_K < most_K - 1e-12
    if weights_K[free].min(initial=1) > 0 and free.sum() > 1:  # among the others, proportions are kept
        ratio = capped_K[free] / weights_K[free]
        assert np.allclose(ratio, ratio[0])


def test_max_epochs_is_never_exceeded(corpus: Corpus) -> None:
    sampler = Sampler(corpus, batch=4, seq_len=16, seed=0, max_epochs=1.5)
    wanted_K = np.array([0.85, 0.05, 0.05, 0.05])
    assert np.array_equal(sampler.executed(wanted_K), wanted_K)
    total = int(np.floor(1.5 * sampler.sizes_K).sum()) - 4
    executed_K = wanted_K
    for _ in range(total // 4):
        executed_K = sampler.executed(wanted_K).astype(np.float32).astype(np.float64)
        sampler.draw(executed_K)
    assert (sampler.drawn_K <= 1.5 * sampler.sizes_K).all()
    assert executed_K[0] < 0.01, "the first domain is used up, and its weight went to the others"


def test_a_part_of_each_domain_is_the_same_in_every_epoch(corpus: Corpus) -> None:
    """A random part, in a new order each time; another one with another seed."""
    parts = []
    for seed in (0, 1):
        sampler = Sampler(corpus, batch=1, seq_len=16, seed=seed, share=0.04)
        whole_K = corpus.num_sequences(16)
        assert sampler.sizes_K.tolist() == np.rint(0.04 * whole_K).tolist()
        seen: list[list[int]] = [[] for _ in corpus.names]
        while sampler.epochs_K.min() < 3:
            domains_B, indices_B, _ = sampler.pick(np.full(4, 0.25))
            for domain, index in zip(domains_B.tolist(), indices_B.tolist(), strict=True):
                seen[domain].append(index)
        for domain, size in enumerate(sampler.sizes_K.tolist()):
            epochs = [seen[domain][start : start + size] for start in (0, size, 2 * size)]
            assert len(set(epochs[0])) == size
            assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
            assert epochs[0] != epochs[1] != epochs[2]
            # The mean of a random part is that of the domain, within four standard errors of a uniform draw.
            assert np.mean(epochs[0]) / whole_K[domain] == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / size))
        parts.append([set(indices) for indices in seen])
    assert all(one != other for one, other in zip(*parts, strict=True))


def test_a_part_is_shared_by_ranks_and_resumed(corpus: Corpus) -> None:
    alone = Sampler(corpus, 8, 16, seed=3, share=0.05)
    ranks = [Sampler(corpus, 8, 16, seed=3, rank=rank, world_size=2, share=0.05) for rank in range(2)]
    weights_K = np.array([0.7, 0.1, 0.1, 0.1])
    for _ in range(30):
        expected = alone.draw(weights_K)
        assert torch.equal(torch.cat([sampler.draw(weights_K).tokens_BU for sampler in ranks]), expected.tokens_BU)
    assert alone.epochs_K.max() > 2
    resumed = Sampler(corpus, 8, 16, seed=3, share=0.05)
    resumed.load_state_dict(alone.state_dict())
    assert torch.equal(resumed.draw(weights_K).tokens_BU, alone.draw(weights_K).tokens_BU)


def test_at_least_one_sequence_of_a_domain_is_left(corpus: Corpus) -> None:
    sampler = Sampler(corpus, 8, 16, seed=0, share=1e-9)
    assert sampler.sizes_K.tolist() == [1, 1, 1, 1]
    first, second = sampler.draw(np.full(4, 0.25)), sampler.draw(np.full(4, 0.25))
    assert len({tuple(row) for row in torch.cat([first.tokens_BU, second.tokens_BU]).tolist()}) == 4
