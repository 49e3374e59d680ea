"""Guide passes: every few steps, some sequences of the targets go through the model, to tell where their loss falls.

    guide texts --draw(step)--> GuideBatch --> forward, and backward to the probe's virtual weights only

No gradient of a parameter is computed, so training is what it is without guides. A draw depends on seed and step alone: a
resumed run draws the same.

Shape letters: J targets, R sequences of a pass, T positions, U = T + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acodm_cli.corpus.held_out import HeldOutText
from acodm_cli.engine.loss import IGNORED

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GuideBatch:
    """The sequences of a guide pass. tokens_RU: int64. labels_RT: what they predict, or IGNORED. guides_R: whose they are.
    counted_R: how many labels of each count. before_J: the mean loss of each text's sequences before training, NaN where it was not
    measured."""

    tokens_RU: Tensor
    labels_RT: Tensor
    guides_R: Tensor
    counted_R: Tensor
    before_J: Array

    def __len__(self) -> int:
        return len(self.tokens_RU)


class Guide:
    """Draws the sequences of guide passes. texts: the guide part of each target. every: the steps between passes.
    sequences: how many a pass has in all; each target has one at least. kept: so many of the last texts must not be forgotten.
    before: the loss of each sequence of these before training, once it is measured. [N] of each"""

    def __init__(self, texts: Sequence[HeldOutText], every: int, sequences: int, seed: int, kept: int = 0) -> None:
        assert texts
        self.texts, self.every, self.seed = texts, every, seed
        self.sequences = max(sequences, len(texts))
        self.kept = texts[len(texts) - kept :]
        self.before: list[Array] = []

    def draw(self, step: int) -> GuideBatch | None:
        """Returns the sequences of the guide pass of a step, counted from 0; None if the step has none."""
        if step % self.every:
            return None
        generator = np.random.default_rng([self.seed, step, 0x6D1DE])
        rows: list[tuple[int, HeldOutText, int]] = []
        for number, text in enumerate(self.texts):
            # What does not go into equal shares goes to each in turn.
            turn = (number + step // self.every) % len(self.texts)
            share = self.sequences // len(self.texts) + (turn < self.sequences % len(self.texts))
            chosen = generator.choice(len(text), min(share, len(text)), replace=False)
            rows += [(number, text, int(row)) for row in np.sort(chosen)]
        tokens_RU = torch.from_numpy(np.stack([text.tokens_NU[row] for _, text, row in rows])).long()
        counted_RT = torch.from_numpy(np.stack([text.counted_NT[row] for _, text, row in rows]))
        guides_R, counted_R = torch.tensor([number for number, _, _ in rows]), counted_RT.sum(1)
        return GuideBatch(
            tokens_RU,
            tokens_RU[:, 1:].masked_fill(~counted_RT, IGNORED),
            guides_R,
            counted_R,
            self._before([(number, row) for number, _, row in rows], counted_R.numpy()),
        )

    def _before(self, rows: list[tuple[int, int]], counted_R: NDArray[np.int64]) -> Array:
        """Returns what the losses of a pass would have been before training. rows: the text and the sequence of each. [J]"""
        sums_J, counts_J = np.zeros(len(self.texts)), np.zeros(len(self.texts))
        first = len(self.texts) - len(self.before)
        for (number, row), counted in zip(rows, counted_R.tolist(), strict=True):
            if number >= first:
                sums_J[number] += counted * self.before[number - first][row]
                counts_J[number] += counted
        return np.divide(sums_J, counts_J, out=np.full(len(sums_J), np.nan), where=counts_J > 0)
