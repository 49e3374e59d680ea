"""Losses: per token in training, per domain in validation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.device import Compute

IGNORED = -100


def token_losses(model: nn.Module, inputs_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Cross-entropy of each predicted token in nats, fp32; zero where the label is ignored. [B, T]"""
    logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
    losses_N = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses_N.view_as(labels_BT)


@torch.no_grad()
def validation_losses(
    model: nn.Module, corpus: Corpus, seq_len: int, max_sequences: int, micro_batch: int, compute: Compute
) -> NDArray[np.float64]:
    """Mean loss per domain in nats over its first `max_sequences` validation sequences. [K]

    Sequence k of a split is tokens [k·T, k·T + T] of its stream, T = seq_len: T inputs, labels shifted by one.
    """
    model.eval()
    losses = []
    for domain in corpus.domains:
        count = min(domain.validation.num_sequences(seq_len), max_sequences)
        total = torch.zeros((), dtype=torch.float64, device=compute.device)
        for start in range(0, count, micro_batch):
            rows = [domain.validation.sequence(i, seq_len) for i in range(start, min(start + micro_batch, count))]
            tokens_BS = torch.from_numpy(np.stack(rows)).to(compute.device)
            with compute.autocast():
                total += token_losses(model, tokens_BS[:, :-1], tokens_BS[:, 1:]).sum()
        losses.append(total / (count * seq_len))
    model.train()
    return torch.stack(losses).cpu().numpy()
