"""Draws mixed batches with exact counts per domain, without replacement, and the same on every rank.

The state is the step and two small vectors: how many sequences of each domain were owed so far, and how many were
drawn. With the seed they decide all that follows, so a run resumes exactly, and no data loader has to replay the past.

Shape letters: K domains, B sequences of the global batch, U = T + 1 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acodm_cli.corpus.corpus import Corpus

# The most that rounding executed weights to float32 changes, as a share of the batch.
_ROUNDING = 1e-6
Counts = NDArray[np.int64]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Batch:
    """A global batch, of which this rank holds some rows. tokens_BU: inputs and shifted labels of these rows, int64.
    rows: which rows these are. domains_B: the domain of every row of the global batch. samples_K: its rows per
    domain."""

    tokens_BU: torch.Tensor
    rows: slice
    domains_B: torch.Tensor
    samples_K: Counts


def apportion(owed_K: NDArray[np.float64], total: int) -> Counts:
    """Returns whole counts of sum `total`, nearest to what each domain is owed (largest remainders first).

    owed_K: the expected samples that are not yet drawn, this step's included; they sum to `total`. What rounding leaves
    over stays owed. So realised counts follow the cumulative expectation, and a domain with a share of less than one
    sequence per step is drawn every few steps instead of never.

    Bounds: no domain is ever ahead by 1 or more. With constant weights, none is behind by much more than 1: the most that
    searches have found is 1.36. Under weights that change against a domain at every step, serving the largest debt first keeps each debt below 1 + ln K
    (the cup game; Adler et al. 2003, "A proportionate fair scheduling rule with good worst-case performance").
    """
    counts_K = np.maximum(np.floor(owed_K), 0).astype(np.int64)
    short = total - int(counts_K.sum())
    if short > 0:
        largest = np.argsort(-(owed_K - counts_K), kind="stable")[:short]
        np.add.at(counts_K, largest, 1)
    while short < 0:  # domains that are ahead (owed < 0) were raised to zero; the least owed ones give that up
        least = np.argmin(np.where(counts_K > 0, owed_K - counts_K, np.inf))
        counts_K[least] -= 1
        short += 1
    return counts_K


def cap_weights(weights_K: NDArray[np.float64], most_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns weights on the simplex, none above most_K; what is cut goes to the others in proportion to their weights.

    If the others have no weight, it goes to them in proportion to their room. most_K: must sum to 1 or more.
    """
    if (weights_K <= most_K).all():
        return weights_K
    capped_K = np.zeros(len(weights_K), dtype=bool)
    result_K = weights_K
    while (over_K := (result_K > most_K) & ~capped_K).any():
        capped_K |= over_K
        left = 1 - most_K[capped_K].sum()
        share_K = np.where(capped_K, 0, weights_K)
        if share_K.sum() == 0:
            share_K = np.where(capped_K, 0, most_K)
        result_K = np.where(capped_K, most_K, left * share_K / share_K.sum() if share_K.any() else 0)
    return result_K


def permuted(positions_N: Counts, sizes_N: Counts, keys_N: Keys) -> Counts:
    """Evaluates a pseudo-random permutation of [0, size) per key at the given positions, without building it.

    The permutation is a four-round Feistel network on the smallest even number of bits that holds `size`; it is applied
    again to values that fall outside (cycle walking). Memory is constant, so epochs of a billion sequences cost
    nothing.
    """
    values_N = positions_N.astype(np.uint64)
    sizes_N = sizes_N.astype(np.uint64)
    half_N = np.maximum(1, (_bit_length(np.maximum(sizes_N, 2) - np.uint64(1)) + np.uint64(1)) // np.uint64(2))
    outside = np.arange(len(values_N))
    while len(outside):
        half, key = half_N[outside], keys_N[outside]
        mask = (np.uint64(1) << half) - np.uint64(1)
        left, right = values_N[outside] >> half, values_N[outside] & mask
        for number in range(4):
            left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(number))) & mask)
        values_N[outside] = (left << half) | right
        outside = outside[values_N[outside] >= sizes_N[outside]]
    return values_N.astype(np.int64)


def _bit_length(values_N: Keys) -> Keys:
    """The number of bits of each value. It is exact below 2^53."""
    return np.frexp(values_N.astype(np.float64))[1].astype(np.uint64)


def _mix(value: Keys) -> Keys:
    """The finaliser of splitmix64: every input bit changes every output bit with probability a half."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _key(*parts: int | NDArray[np.integer]) -> Keys:
    """Makes one key from several whole numbers, elementwise."""
    key: Any = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mix(np.atleast_1d(key * np.uint64(0x100000001B3) + np.asarray(part).astype(np.uint64)))
    return np.atleast_1d(key)


class IndexSampler:
    """Draws indices of sequences, `batch` of them at a time, from P_α = Σ α_i UNIF(D_i), stratified by domain.

    Within an epoch of a domain no sequence repeats; each epoch has an order of its own.
    """

    def __init__(
        self, sizes_K: Counts, batch: int, seed: int, max_epochs: float | None = None, whole_K: Counts | None = None
    ) -> None:
        """sizes_K: the sequences of each domain. max_epochs: how often a domain may be seen, None for no limit. whole_K: the sequences
        that each domain has, if only sizes_K of them are drawn: a random part, the same in every epoch. None for all."""
        self.sizes_K = sizes_K
        self.whole_K = sizes_K if whole_K is None else whole_K
        self.batch = batch
        self.seed = seed
        self.step = 0
        self.limits_K = None if max_epochs is None else np.floor(max_epochs * self.sizes_K)
        self.expected_K = np.zeros(len(self.sizes_K))
        self.drawn_K = np.zeros(len(self.sizes_K), dtype=np.int64)

    def executed(self, weights_K: NDArray[np.float64]) -> NDArray[np.float64]:
        """Applies --max-epochs to a mixer's weights: weight that a domain has no room for goes to the others. [K]"""
        if self.limits_K is None:
            return weights_K
        return cap_weights(
            weights_K, np.maximum(self.limits_K - self.expected_K - _ROUNDING * self.batch, 0) / self.batch
        )

    def pick(self, weights_K: NDArray[np.float64]) -> tuple[Counts, Counts, Counts]:
        """Returns (domain [B], sequence of that domain [B], sequences per domain [K]) of the next global batch."""
        samples_K = self._count(weights_K)
        domains_B = np.repeat(np.arange(len(samples_K)), samples_K)
        # numbers_B counts the sequences of each domain since the run began; modulo the size, since the epoch began.
        first_B = np.repeat(np.cumsum(samples_K) - samples_K, samples_K)
        numbers_B = self.drawn_K[domains_B] + np.arange(self.batch) - first_B
        sizes_B = self.sizes_K[domains_B]
        keys_B = _key(self.seed, domains_B, numbers_B // sizes_B)
        indices_B = permuted(numbers_B % sizes_B, sizes_B, keys_B)
        cut_B = (self.sizes_K < self.whole_K)[domains_B]
        if cut_B.any():
            # The part is where a permutation of the whole domain, which no epoch changes, sends the first sizes_K places.
            cut_domains = domains_B[cut_B]
            indices_B[cut_B] = permuted(indices_B[cut_B], self.whole_K[cut_domains], _key(self.seed, cut_domains))
        # The domains are mixed over the batch, so that every micro-batch and rank sees them.
        order = np.random.default_rng((self.seed, self.step)).permutation(self.batch)
        self.drawn_K += samples_K
        self.step += 1
        return domains_B[order], indices_B[order], samples_K

    def skip(self, weights_K: NDArray[np.float64]) -> None:
        """Moves past the next batch as `pick` does, but does not compute which sequences are in it."""
        self.drawn_K += self._count(weights_K)
        self.step += 1

    def _count(self, weights_K: NDArray[np.float64]) -> Counts:
        """Returns the sequences per domain of the next batch, and adds them to what is expected. [K]"""
        assert abs(weights_K.sum() - 1) < 1e-4, weights_K.sum()
        self.expected_K += self.batch * weights_K / weights_K.sum()
        return apportion(self.expected_K - self.drawn_K, self.batch)

    @property
    def epochs_K(self) -> NDArray[np.float64]:
        """How many times each domain's training sequences have been seen so far."""
        return self.drawn_K / self.sizes_K

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "expected": torch.from_numpy(self.expected_K.copy()),
            "drawn": torch.from_numpy(self.drawn_K.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.expected_K = state["expected"].numpy()
        self.drawn_K = state["drawn"].numpy()


class Sampler(IndexSampler):
    """Draws batches of a corpus, of which each rank loads its share."""

    def __init__(
        self,
        corpus: Corpus,
        batch: int,
        seq_len: int,
        seed: int,
        max_epochs: float | None = None,
        rank: int = 0,
        world_size: int = 1,
        share: float = 1.0,
    ) -> None:
        """share: of each domain's sequences, which are drawn."""
        super().__init__(corpus.num_sequences(seq_len, share), batch, seed, max_epochs, corpus.num_sequences(seq_len))
        self.corpus = corpus
        self.seq_len = seq_len
        self.rows = slice(rank * batch // world_size, (rank + 1) * batch // world_size)

    def draw(self, weights_K: NDArray[np.float64]) -> Batch:
        """Draws the next batch. weights_K: the executed weights, on the simplex."""
        domains_B, indices_B, samples_K = self.pick(weights_K)
        mine = zip(domains_B[self.rows].tolist(), indices_B[self.rows].tolist(), strict=True)
        sequences = [self.corpus.domains[domain].train.sequence(index, self.seq_len) for domain, index in mine]
        tokens_BU = np.stack(sequences) if sequences else np.zeros((0, self.seq_len + 1), np.int64)
        return Batch(torch.from_numpy(tokens_BU), self.rows, torch.from_numpy(domains_B), samples_K)
