"""Measures a model on held-out text, and plans how often and on how much of it a run does so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from acodm_cli.corpus.held_out import HeldOutText
from acodm_cli.engine.device import Compute
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.loss import IGNORED
from acodm_cli.engine.settings import TrainSettings

Array = NDArray[np.float64]

# Validation takes at most this share of a run's time, by default. Its forward pass costs a third of a step's.
MOST_SHARE = 0.1
FORWARD_COST = 1 / 3
# By default, there are so many sequences per text: enough for a standard error of about 1%, if time allows. Where there
# would be fewer than FEW_ROWS, a run validates less often.
LEAST_ROWS, FEW_ROWS, MOST_ROWS, MOST_TOKENS = 4, 16, 1024, 1 << 18
_MOST_VALIDATIONS = 11


@dataclass(frozen=True)
class Measured:
    """Losses on J held-out texts. losses_J: the mean over counted labels, in nats. errors_J: the standard error of that mean
    over documents; NaN for a single document. bits_J: bits per byte of the text that the labels stand for, NaN if they stand
    for none."""

    losses_J: Array
    errors_J: Array
    bits_J: Array


def measure(
    loss: nn.Module, texts: Sequence[HeldOutText], micro_batch: int, compute: Compute, ranks: Ranks
) -> Measured:
    """Returns the losses of a model on held-out texts. The ranks share the sequences. loss: a `CausalLoss`."""
    return summarised(_sums(loss, texts, micro_batch, compute, ranks), texts)


def sequence_losses(
    loss: nn.Module, texts: Sequence[HeldOutText], micro_batch: int, compute: Compute, ranks: Ranks
) -> list[Array]:
    """Returns the mean loss of each sequence of held-out texts, in nats; otherwise as `measure`. [N] of each. Every sequence must
    have a label that counts."""
    of_its_own = [
        replace(text, documents_NT=np.zeros_like(text.documents_NT) + np.arange(len(text), dtype=np.int32)[:, None])
        for text in texts
    ]
    sums = _sums(loss, of_its_own, micro_batch, compute, ranks)
    return [sums_N / text.counted_NT.sum(axis=1) for sums_N, text in zip(sums, texts, strict=True)]


@torch.no_grad()
def _sums(
    loss: nn.Module, texts: Sequence[HeldOutText], micro_batch: int, compute: Compute, ranks: Ranks
) -> list[Array]:
    """Returns the sums of losses per document of each text. [D] of each"""
    loss.eval()
    sizes = np.cumsum([0, *(len(text.tokens_D) for text in texts)])
    sums_D = torch.zeros(int(sizes[-1]), dtype=torch.float64, device=compute.device)
    rows = [(text, first, row) for text, first in zip(texts, sizes.tolist(), strict=False) for row in range(len(text))]
    mine, most = rows[ranks.rank :: ranks.world_size], -(-len(rows) // ranks.world_size)
    # All batches have one shape, for which there is one compiled graph, and a sharded model needs every rank in every forward pass:
    # what is missing is filled up with the first sequence, which does not count.
    size = -(-most // -(-most // micro_batch))
    for start in range(0, most, size):
        counted = len(mine[start : start + size])
        part = mine[start : start + size] + rows[:1] * (size - counted)
        tokens_BU = torch.from_numpy(np.stack([text.tokens_NU[row] for text, _, row in part])).long()
        counted_BT = torch.from_numpy(np.stack([text.counted_NT[row] for text, _, row in part]))
        counted_BT[counted:] = False
        documents_BT = torch.from_numpy(np.stack([first + text.documents_NT[row] for text, first, row in part])).long()
        labels_BT = tokens_BU[:, 1:].masked_fill(~counted_BT, IGNORED)
        with compute.autocast():
            losses_BT = loss(compute.sent(tokens_BU[:, :-1]), compute.sent(labels_BT))[1]
        sums_D.index_add_(0, compute.sent(documents_BT.flatten()), losses_BT.double().flatten())
    loss.train()
    found_D = ranks.sum_(sums_D).cpu().numpy()
    return [found_D[a:b] for a, b in itertools.pairwise(sizes)]


def summarised(sums: Sequence[Array], texts: Sequence[HeldOutText]) -> Measured:
    """Returns what the sums of losses per document ([D] for each text) say of each text.

    The mean is a ratio of sums over documents, so its standard error is that of a ratio estimator: with S_d the sum and N_d
    the counted labels of document d, and ℓ = ΣS/ΣN, it is √(D/(D-1) · Σ (S_d - ℓ N_d)²) / ΣN."""
    losses, errors, bits = [], [], []
    for sums_D, text in zip(sums, texts, strict=True):
        tokens_D = text.tokens_D
        total, documents = int(tokens_D.sum()), int((tokens_D > 0).sum())
        mean = float(sums_D.sum()) / total
        spread = float(((sums_D - mean * tokens_D) ** 2).sum())
        losses.append(mean)
        errors.append(math.sqrt(spread * documents / (documents - 1)) / total if documents > 1 else math.nan)
        bits.append(float(sums_D.sum()) / math.log(2) / text.bytes if text.bytes else math.nan)
    return Measured(np.array(losses), np.array(errors), np.array(bits))


def plan_validation(
    settings: TrainSettings, domains_J: Sequence[int], targets_J: Sequence[int] = ()
) -> tuple[int, list[int]]:
    """Returns (steps between validations, sequences of each text). domains_J, targets_J: how many sequences each text has.

    What the settings leave open is planned so that validation takes a tenth of the run's time: with fewer validations in
    a run that is very short, and with more sequences, up to what a standard error of 1% needs, in a longer one. Targets, for
    which the run is, have half of them."""
    available_J = [*domains_J, *targets_J]
    most = max(LEAST_ROWS, min(MOST_ROWS, MOST_TOKENS // settings.seq_len))
    budget = MOST_SHARE / FORWARD_COST * settings.steps * settings.batch  # sequences, in all validations
    every = settings.validate_every
    if every is None:
        asked = sum(min(settings.validation_sequences or FEW_ROWS, available) for available in available_J)
        times = int(min(max(2, budget // asked), _MOST_VALIDATIONS))
        every = max(1, -(-settings.steps // (times - 1)))
    if settings.validation_sequences is not None:
        return every, [min(settings.validation_sequences, available) for available in available_J]
    budget /= 1 + -(-settings.steps // every)
    of_targets = shared(budget / 2, [min(most, available) for available in targets_J])
    of_domains = shared(budget - sum(of_targets), [min(most, available) for available in domains_J])
    rows_J = [*of_domains, *of_targets]
    return every, [min(available, max(LEAST_ROWS, rows)) for rows, available in zip(rows_J, available_J, strict=True)]


def shared(budget: float, most_J: Sequence[int]) -> list[int]:
    """Returns equal shares of a budget; what a text has no use for goes to the others. most_J: what each can use."""
    rows_J = [0] * len(most_J)
    for done, index in enumerate(sorted(range(len(most_J)), key=most_J.__getitem__)):
        rows_J[index] = min(most_J[index], int(budget // (len(most_J) - done)))
        budget -= rows_J[index]
    return rows_J
