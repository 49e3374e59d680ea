"""Makes AdamW and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

BETAS = (0.9, 0.95)
MIN_LR_SHARE = 0.1


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Makes an AdamW that decays matrices only, not biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)


def learning_rate(step: int, total_steps: int, peak: float, warmup_share: float) -> float:
    """The learning rate of a step: a linear warm-up over a share of the run, then a cosine to 10% of the peak.

    step: counted from 0."""
    warmup = max(1, round(warmup_share * total_steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (MIN_LR_SHARE + (1 - MIN_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))
