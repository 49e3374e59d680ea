"""Per-domain gradients of linear layers, out of the one ordinary backward pass.

Give every domain its own virtual copy of a layer's weight: y_t = (W + V[domain(t)]) x_t, with V = 0. The forward
pass is unchanged, and dL/dV[i] is the gradient that domain i contributes to W. Autograd then does the rest as
it does for any parameter: gradient accumulation adds up, and data-parallel ranks may sum V.grad.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PerDomainWeightGradient(torch.autograd.Function):
    """Identity on y that sends Σ_{t∈i} δ_t x_tᵀ to the gradient of the virtual weights V[i].

    y_BTO: output of the linear layer; x_BTI: its input; virtual_KOI: the (zero) virtual weights;
    rows_by_domain: for each domain index, the rows of the batch that belong to it.
    """

    @staticmethod
    def forward(
        ctx: Any, y_BTO: Tensor, x_BTI: Tensor, virtual_KOI: Tensor, rows_by_domain: dict[int, Tensor]
    ) -> Tensor:
        # x is what the linear layer itself keeps for its backward pass: saving it again costs no memory.
        ctx.save_for_backward(x_BTI)
        ctx.rows_by_domain = rows_by_domain
        ctx.virtual_shape = virtual_KOI.shape
        return y_BTO.view_as(y_BTO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (delta_BTO,) = grads
        (x_BTI,) = ctx.saved_tensors
        grad_KOI = torch.zeros(ctx.virtual_shape, dtype=torch.float32, device=delta_BTO.device)
        for domain, rows in ctx.rows_by_domain.items():
            delta_NO = delta_BTO[rows].flatten(0, 1)
            x_NI = x_BTI[rows].flatten(0, 1).to(delta_NO.dtype)
            grad_KOI[domain] = delta_NO.T @ x_NI
        return delta_BTO, None, grad_KOI, None
