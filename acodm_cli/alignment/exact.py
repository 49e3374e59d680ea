"""Exact per-domain gradients of linear layers, out of the one ordinary backward pass.

Give every group of sequences its own virtual copy of a layer's weight: y_t = (W + V[group(t)]) x_t, with V = 0. The
forward pass is unchanged, and dL/dV[g] is the gradient that group g contributes to W. Autograd then does the rest as
it does for any parameter: gradient accumulation adds up, and data-parallel ranks may sum V.grad.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acodm_cli.alignment.probe import GradientProbe


class GroupedWeightGradient(torch.autograd.Function):
    """Identity on y that sends Σ_{t∈g} δ_t x_tᵀ to the gradient of the virtual weights V[g].

    y_BTO: output of the linear layer; x_BTI: its input; virtual_GOI: the (zero) virtual weights; groups_B: each
    sequence's group.
    """

    @staticmethod
    def forward(ctx: Any, y_BTO: Tensor, x_BTI: Tensor, virtual_GOI: Tensor, groups_B: Tensor) -> Tensor:
        # x is what the linear layer itself keeps for its backward pass: saving it again costs no memory.
        ctx.save_for_backward(x_BTI, groups_B)
        ctx.virtual_shape = virtual_GOI.shape
        return y_BTO.view_as(y_BTO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (delta_BTO,) = grads
        x_BTI, groups_B = ctx.saved_tensors
        grad_GOI = torch.zeros(ctx.virtual_shape, dtype=torch.float32, device=delta_BTO.device)
        for group in groups_B.unique().tolist():
            rows = groups_B == group
            delta_NO = delta_BTO[rows].flatten(0, 1)
            grad_GOI[group] = delta_NO.T @ x_BTI[rows].flatten(0, 1).to(delta_NO.dtype)
        return delta_BTO, None, grad_GOI, None


class ExactProbe(GradientProbe):
    """For tests, and as the truth that estimates are compared with: takes G·P floats for P watched weights."""

    def _make_virtual(self, name: str) -> Tensor:
        weight = self.layers[name].weight
        # One zero, expanded: a leaf of the right shape that takes no memory.
        zero = torch.zeros((), device=weight.device)
        return zero.expand(self.num_groups, *weight.shape).requires_grad_()

    def _watch(self, name: str, y_BTO: Tensor, x_BTI: Tensor, groups_B: Tensor) -> Tensor:
        return GroupedWeightGradient.apply(y_BTO, x_BTI, self.virtual[name], groups_B)

    def bytes_needed(self) -> int:
        return 4 * self.num_groups * sum(layer.weight.numel() for layer in self.layers.values())
