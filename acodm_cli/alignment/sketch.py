"""Sketched per-domain gradients: unbiased inner products of all linear layers' gradients for the price of a glance.

For a linear layer y = W x the gradient of group g is Σ_{t∈g} δ_t x_tᵀ. Two things make its inner products cheap:

- Two-sided block sketch: S_g = Σ_{t∈g} (A δ_t)(B x_t)ᵀ. A and B add up blocks of features with random signs (one pass
  of additions); a side that is small already is left as it is. E[AᵀA] = I, so E⟨S_g, S_h⟩ = ⟨g_g, g_h⟩. It is a count
  sketch (Charikar, Chen, Farach-Colton 2002; Weinberger et al., 0902.2206) with one sign per block.
- Token sampling, if wanted: of each sequence's T positions only n are looked at, evenly spaced from a random start and scaled by T/n.
  Starts are independent between sequences, so products of different sequences' gradients are unbiased too.

Signs and starts are drawn afresh at each step, as a function of (seed, step): errors average out in the reward's moving
average instead of becoming a bias, a resumed run draws the same, and so do data-parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acodm_cli.alignment.probe import GradientProbe


@dataclass(frozen=True)
class SketchSettings:
    """size: features kept per side of a layer (p and q). share: of the positions looked at, 0 to 1."""

    size: int = 64
    share: float = 1.0


def num_blocks(features: int, size: int) -> int:
    """Blocks of `size` features that are added up; 0 if the side is small enough to be left as it is."""
    return 0 if features <= size else -(-features // size)


def block_sketch(x_F: Tensor, signs_J: Tensor, size: int) -> Tensor:
    """[..., F] -> [..., size], fp32: x cut into J blocks of `size` features, added up with a random sign each.

    Features j and k that meet in a bucket lie in different blocks, whose signs are independent: E[AᵀA] = I. One sign per
    block, and not per feature, makes it a product of a vector and a matrix, without a temporary.
    """
    if not num_blocks(x_F.shape[-1], size):
        return x_F.float()
    padded = F.pad(x_F, (0, -x_F.shape[-1] % size)) if x_F.shape[-1] % size else x_F
    return (signs_J.to(x_F.dtype) @ padded.unflatten(-1, (-1, size))).float()


class SketchedWeightGradient(torch.autograd.Function):
    """Identity on y that sends the sketch S_g to the gradient of the virtual weights [G, p, q].

    y = (W + Aᵀ V[g] B) x with V = 0 has dL/dV[g] = A (Σ_{t∈g} δ_t x_tᵀ) Bᵀ = S_g.
    positions_BN: the positions looked at. scale: T/n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y_BTO: Tensor,
        x_BTI: Tensor,
        virtual_Gpq: Tensor,
        groups_B: Tensor,
        positions_BN: Tensor,
        signs_J: Tensor,
        signs_L: Tensor,
        size: int,
    ) -> Tensor:
        ctx.save_for_backward(x_BTI, groups_B, positions_BN, signs_J, signs_L)
        ctx.size = size
        ctx.num_groups = virtual_Gpq.shape[0]
        return y_BTO.view_as(y_BTO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (delta_BTO,) = grads
        x_BTI, groups_B, positions_BN, signs_J, signs_L = ctx.saved_tensors
        scale = x_BTI.shape[1] / positions_BN.shape[1]
        if scale > 1:
            rows_B1 = torch.arange(len(groups_B), device=groups_B.device)[:, None]
            delta_BTO, x_BTI = delta_BTO[rows_B1, positions_BN], x_BTI[rows_B1, positions_BN]
        delta_BNp = block_sketch(delta_BTO, signs_J, ctx.size)
        x_BNq = block_sketch(x_BTI, signs_L, ctx.size)
        sketch_Bpq = torch.bmm(delta_BNp.transpose(1, 2), x_BNq) * scale
        grad_Gpq = sketch_Bpq.new_zeros(ctx.num_groups, *sketch_Bpq.shape[1:]).index_add_(0, groups_B, sketch_Bpq)
        return grads[0], None, grad_Gpq, None, None, None, None, None


class SketchProbe(GradientProbe):
    """Takes G·p·q floats per layer; the default."""

    def __init__(
        self, layers: dict[str, nn.Linear], num_domains: int, halves: bool, seed: int, settings: SketchSettings
    ) -> None:
        self.settings = settings
        self.seed = seed
        super().__init__(layers, num_domains, halves)
        self.starts = torch.Generator()
        self.signs = torch.Generator(self.device)
        # The output and input side of each layer; their signs are drawn as one vector per step.
        self._sides = [(name, side) for name in layers for side in (0, 1)]
        self._lengths = [num_blocks(layers[name].weight.shape[side], settings.size) for name, side in self._sides]
        self._signs: dict[tuple[str, int], Tensor] = {}
        self._positions_BN: dict[int, Tensor] = {}

    def _make_virtual(self, name: str) -> Tensor:
        size = self.settings.size
        p, q = (min(features, size) for features in self.layers[name].weight.shape)
        return torch.zeros(self.num_groups, p, q, device=self.device, requires_grad=True)

    def bytes_needed(self) -> int:
        return 4 * sum(virtual.numel() for virtual in self.virtual.values())

    def start(self, step: int) -> None:
        super().start(step)
        seed = (self.seed * 1_000_003 + step) % 2**63
        self.starts.manual_seed(seed)
        self.signs.manual_seed(seed)
        total = sum(self._lengths)
        bits = torch.randint(0, 2, (total,), generator=self.signs, device=self.device, dtype=torch.float32)
        self._signs = dict(zip(self._sides, (2 * bits - 1).split(self._lengths), strict=True))

    def begin(self, domains_B: Tensor, tokens_B: Tensor) -> None:
        super().begin(domains_B, tokens_B)
        # A share of [0, 1), for the sequence length that the layers will see.
        self._starts_B = torch.rand(len(domains_B), generator=self.starts, dtype=torch.float64)
        self._positions_BN = {}

    def _positions(self, length: int) -> Tensor:
        """Evenly spaced positions from each sequence's random start, round the end. Each position is equally likely."""
        if length not in self._positions_BN:
            count = max(1, round(length * self.settings.share))
            spaced_N = torch.arange(count) * length // count
            starts_B = (self._starts_B * length).long()
            positions_BN = (starts_B[:, None] + spaced_N) % length
            self._positions_BN[length] = positions_BN.to(self.device, non_blocking=True)
        return self._positions_BN[length]

    def _watch(self, name: str, y_BTO: Tensor, x_BTI: Tensor, groups_B: Tensor) -> Tensor:
        return SketchedWeightGradient.apply(
            y_BTO,
            x_BTI,
            self.virtual[name],
            groups_B,
            self._positions(x_BTI.shape[1]),
            self._signs[name, 0],
            self._signs[name, 1],
            self.settings.size,
        )

    def _gram_of_sums(self) -> Tensor:
        grads = [virtual.grad.flatten(1) for virtual in self.virtual.values() if virtual.grad is not None]
        sketch_GP = torch.cat(grads, dim=1)
        return sketch_GP @ sketch_GP.T
