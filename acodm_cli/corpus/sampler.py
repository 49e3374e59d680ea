"""Draws mixed batches: exact counts per domain, without replacement, resumable from two small vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acodm_cli.corpus.corpus import Corpus

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """tokens_BS: int64 [B, seq_len + 1], inputs and shifted labels. domains_B: each sequence's domain.
    samples_K: sequences per domain."""

    tokens_BS: torch.Tensor
    domains_B: torch.Tensor
    samples_K: Counts


def apportion(owed_K: NDArray[np.float64], total: int) -> Counts:
    """Whole counts with the given sum, nearest to what each domain is owed (largest remainders first).

    owed_K: expected samples not yet drawn, this step's included; they sum to `total`. Because what rounding leaves
    over stays owed, realised counts follow the cumulative expectation, and a domain with a share of less than one
    sequence per step is drawn every few steps instead of never.
    """
    counts_K = np.maximum(np.floor(owed_K), 0).astype(np.int64)
    short = total - int(counts_K.sum())
    if short > 0:
        largest = np.argsort(-(owed_K - counts_K), kind="stable")[:short]
        np.add.at(counts_K, largest, 1)
    while short < 0:  # domains that are ahead (owed < 0) had to be raised to zero: take it from the least owed
        least = np.argmin(np.where(counts_K > 0, owed_K - counts_K, np.inf))
        counts_K[least] -= 1
        short += 1
    return counts_K


def permuted(positions: Counts, size: int, key: int) -> Counts:
    """A pseudo-random permutation of [0, size) at the given positions, without building it.

    A four-round Feistel network on the smallest even number of bits that holds `size`; values outside are walked on
    until they fall inside (cycle walking). Constant memory, so epochs of a billion sequences cost nothing.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    rounds = np.random.SeedSequence(key).generate_state(4, np.uint64)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for round_key in rounds:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= size
    return values.astype(np.int64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every input bit changes every output bit with probability a half."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class Sampler:
    """Batches of `batch` sequences from P_α = Σ α_i UNIF(D_i), stratified.

    Within an epoch of a domain no sequence repeats; each epoch has an order of its own. The state is how many
    sequences each domain was expected to give and has given; with the seed it determines all that follows.
    """

    def __init__(self, corpus: Corpus, batch: int, seq_len: int, seed: int) -> None:
        self.corpus = corpus
        self.batch = batch
        self.seq_len = seq_len
        self.seed = seed
        self.step = 0
        self.sizes_K = np.array([d.train.num_sequences(seq_len) for d in corpus.domains], dtype=np.int64)
        self.expected_K = np.zeros(len(self.sizes_K))
        self.drawn_K = np.zeros(len(self.sizes_K), dtype=np.int64)

    def draw(self, weights_K: NDArray[np.float64]) -> Batch:
        """The next batch. weights_K: on the simplex."""
        assert abs(weights_K.sum() - 1) < 1e-4, weights_K.sum()
        self.expected_K += self.batch * weights_K / weights_K.sum()
        samples_K = apportion(self.expected_K - self.drawn_K, self.batch)
        picks = [
            (domain, index)
            for domain, count in enumerate(samples_K)
            for index in self._indices(domain, int(self.drawn_K[domain]), int(count))
        ]
        self.drawn_K += samples_K
        # Mix the domains over the batch, so that every micro-batch sees them.
        order = np.random.default_rng((self.seed, self.step)).permutation(len(picks))
        self.step += 1
        picks = [picks[position] for position in order]
        sequences = [self.corpus.domains[domain].train.sequence(index, self.seq_len) for domain, index in picks]
        return Batch(
            tokens_BS=torch.from_numpy(np.stack(sequences)),
            domains_B=torch.tensor([domain for domain, _ in picks]),
            samples_K=samples_K,
        )

    def _indices(self, domain: int, start: int, count: int) -> list[int]:
        size = int(self.sizes_K[domain])
        numbers = np.arange(start, start + count)
        indices: list[int] = []
        for epoch in np.unique(numbers // size):
            positions = numbers[numbers // size == epoch] % size
            key = [self.seed, domain, int(epoch)]
            indices += permuted(positions, size, _fold(key)).tolist()
        return indices

    @property
    def epochs_K(self) -> NDArray[np.float64]:
        """How many times each domain's training sequences have been seen."""
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


def _fold(parts: list[int]) -> int:
    """One seed from several whole numbers."""
    words = np.random.SeedSequence(parts).generate_state(2, np.uint64)
    return int(words[0]) << 64 | int(words[1])
