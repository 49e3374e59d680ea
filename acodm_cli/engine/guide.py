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
from torch import Tensor

from acodm_cli.corpus.held_out import HeldOutText
from acodm_cli.engine.loss import IGNORED


@dataclass(frozen=True)
class GuideBatch:
    """The sequences of a guide pass. tokens_RU: int64. labels_RT: what they predict, or IGNORED. guides_R: whose they are.
    counted_R: how many labels of each count."""

    tokens_RU: Tensor
    labels_RT: Tensor
    guides_R: Tensor
    counted_R: Tensor

    def __len__(self) -> int:
        return len(self.tokens_RU)


class Guide:
    """Draws the sequences of guide passes. texts: the guide part of each target. every: the steps between passes.
    sequences: how many a pass has in all; each target has one at least."""

    def __init__(self, texts: Sequence[HeldOutText], every: int, sequences: int, seed: int) -> None:
        assert texts
        self.texts, self.every, self.seed = texts, every, seed
        self.sequences = max(sequences, len(texts))

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
        return GuideBatch(
            tokens_RU,
            tokens_RU[:, 1:].masked_fill(~counted_RT, IGNORED),
            torch.tensor([number for number, _, _ in rows]),
            counted_RT.sum(1),
        )
