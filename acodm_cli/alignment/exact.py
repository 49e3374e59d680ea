"""Computes exact per-domain gradients of weight matrices, in the one ordinary backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acodm_cli.alignment.probe import GradientProbe, LayerWatch


class GroupedWeightGradient(torch.autograd.Function):
    """The identity on y, whose backward pass gives the virtual weights V[g] the gradient Σ_{t∈g} δ_t x_tᵀ.

    This is the gradient of V[g] in y_t = (W + V[g(t)]) x_t.

    y_BTO: the output of the linear layer. x_BTI: its input, or the token ids [B, T] of an embedding. virtual_nOI: the
    (zero) virtual weights, [n, V, O] for an embedding. slots_B: the group of each sequence.
    """

    @staticmethod
    def forward(ctx: Any, y_BTO: Tensor, x_BTI: Tensor, virtual_nOI: Tensor, slots_B: Tensor) -> Tensor:
        # x is what the layer itself keeps for its backward pass: saving it again costs no memory.
        ctx.save_for_backward(x_BTI, slots_B)
        ctx.virtual_shape = virtual_nOI.shape
        return y_BTO.view_as(y_BTO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (delta_BTO,) = grads
        x_BTI, slots_B = ctx.saved_tensors
        grad_nOI = torch.zeros(ctx.virtual_shape, dtype=torch.float32, device=delta_BTO.device)
        if x_BTI.is_floating_point():
            for delta_TO, x_TI, slot in zip(delta_BTO, x_BTI, slots_B.split(1), strict=True):
                grad_nOI.index_add_(0, slot, (delta_TO.T @ x_TI.to(delta_TO.dtype)).float().unsqueeze(0))
        else:
            rows_BT = slots_B[:, None] * ctx.virtual_shape[1] + x_BTI
            grad_nOI.flatten(0, 1).index_add_(0, rows_BT.flatten(), delta_BTO.flatten(0, 1).float())
        return delta_BTO, None, grad_nOI, None


class ExactWatch(LayerWatch):
    """Watches a layer by its exact gradients."""

    def record(self, y_BTO: Tensor, x_BTI: Tensor) -> Tensor:
        return GroupedWeightGradient.apply(y_BTO, x_BTI, self.virtual, self.slots_B)


class ExactProbe(GradientProbe):
    """Computes exact gradients, for tests and as the truth that estimates are compared with. It takes n·P floats for P
    watched weights."""

    reads_whole_gradients = True

    def virtual_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape

    def make_watch(self, name: str) -> LayerWatch:
        return ExactWatch(name)
