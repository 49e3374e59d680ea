"""Computes the validation loss of each domain."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.device import Compute
from acodm_cli.engine.distributed import Ranks


@torch.no_grad()
def validation_losses(
    loss: nn.Module, corpus: Corpus, seq_len: int, max_sequences: int, micro_batch: int, compute: Compute, ranks: Ranks
) -> NDArray[np.float64]:
    """Returns the mean loss in nats of each domain over its first `max_sequences` validation sequences. [K]

    Sequence k of a split is tokens [k·T, k·T + T] of its stream, T = seq_len: T inputs, and T labels shifted by one.
    The ranks share the sequences.
    """
    loss.eval()
    sums_K = torch.zeros(len(corpus.domains), dtype=torch.float64, device=compute.device)
    counts_K = np.array([min(d.validation.num_sequences(seq_len), max_sequences) for d in corpus.domains])
    for index, (domain, count) in enumerate(zip(corpus.domains, counts_K.tolist(), strict=True)):
        # A sharded model needs every rank in every forward pass: a rank without a sequence runs the domain's first one.
        for start in range(0, -(-count // ranks.world_size), micro_batch):
            mine = range(start * ranks.world_size + ranks.rank, count, ranks.world_size)[:micro_batch]
            rows = [domain.validation.sequence(i, seq_len) for i in mine or [0]]
            tokens_BU = torch.from_numpy(np.stack(rows)).to(compute.device)
            with compute.autocast():
                losses_BT = loss(tokens_BU[:, :-1], tokens_BU[:, 1:])[1]
            sums_K[index] += losses_BT.double().sum() * bool(mine)
    loss.train()
    return ranks.sum_(sums_K).cpu().numpy() / (counts_K * seq_len)
