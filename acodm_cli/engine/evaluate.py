"""Validation losses per domain."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.device import Compute
from acodm_cli.engine.loss import CausalLoss


@torch.no_grad()
def validation_losses(
    loss: CausalLoss, corpus: Corpus, seq_len: int, max_sequences: int, micro_batch: int, compute: Compute
) -> NDArray[np.float64]:
    """Mean loss per domain in nats over its first `max_sequences` validation sequences. [K]

    Sequence k of a split is tokens [k·T, k·T + T] of its stream, T = seq_len: T inputs, labels shifted by one.
    """
    loss.model.eval()
    losses = []
    for domain in corpus.domains:
        count = min(domain.validation.num_sequences(seq_len), max_sequences)
        total = torch.zeros((), dtype=torch.float64, device=compute.device)
        for start in range(0, count, micro_batch):
            rows = [domain.validation.sequence(i, seq_len) for i in range(start, min(start + micro_batch, count))]
            tokens_BS = torch.from_numpy(np.stack(rows)).to(compute.device)
            with compute.autocast():
                total += loss(tokens_BS[:, :-1], tokens_BS[:, 1:])[0]
        losses.append(total / (count * seq_len))
    loss.model.train()
    return torch.stack(losses).cpu().numpy()
