"""Makes AdamW and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from acodm_cli.engine.settings import TrainSettings

BETAS = (0.9, 0.95)


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Makes an AdamW that decays matrices only, not biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The learning rate of a step: a linear warm-up over a share of the run, then what `lr_schedule` says.

    cosine and linear fall over the rest of the run, wsd (warm-up, stable, decay; MiniCPM, 2404.06395, where the decay is exponential)
    falls linearly at its end only. The step after the last one would have the least learning rate.

    step: counted from 0. settings: must have a learning rate."""
    assert settings.lr is not None
    peak, lowest, total_steps = settings.lr, settings.lr_min, settings.steps
    begin = max(1, round(settings.lr_warmup * total_steps))
    if step < begin:
        return peak * (step + 1) / begin
    if settings.decay_share is not None:
        begin = max(begin, total_steps - max(1, round(settings.decay_share * total_steps)))
    if settings.lr_schedule == "constant" or step < begin:
        return peak
    progress = (step - begin) / max(1, total_steps - begin)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if settings.lr_schedule == "cosine" else 1 - progress
    return peak * (lowest + (1 - lowest) * left)
