"""Per-domain gradients the slow and obvious way: one autograd pass per domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acodm_cli.engine.loss import IGNORED, token_losses


def domain_gradients(
    model: nn.Module,
    parameters: list[Tensor],
    tokens_BU: Tensor,
    labels_BT: Tensor,
    domains_B: Tensor,
    num_domains: int,
) -> Tensor:
    """G: gradient of each domain's mean token loss, zero rows for absent domains. [K, P], float64"""
    size = sum(parameter.numel() for parameter in parameters)
    gradients_KP = torch.zeros(num_domains, size, dtype=torch.float64)
    for domain in domains_B.unique().tolist():
        rows = domains_B == domain
        losses_BT = token_losses(model, tokens_BU[rows, :-1], labels_BT[rows])
        loss = losses_BT.sum() / (labels_BT[rows] != IGNORED).sum()
        gradients = torch.autograd.grad(loss, parameters)
        gradients_KP[domain] = torch.cat([gradient.flatten() for gradient in gradients]).double()
    return gradients_KP
