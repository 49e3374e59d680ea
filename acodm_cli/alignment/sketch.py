"""Sketches per-domain gradients, to get unbiased inner products of all weight matrices' gradients at little cost.

For a linear layer y = W x the gradient of group g is Σ_{t∈g} δ_t x_tᵀ. Two things make its inner products cheap:

- Two-sided block sketch: S_g = Σ_{t∈g} (A δ_t)(B x_t)ᵀ. A and B add up blocks of features with random signs (one pass
  of additions); a side that is small already is left as it is. E[AᵀA] = I, so E⟨S_g, S_h⟩ = ⟨g_g, g_h⟩. It is a count
  sketch (Charikar, Chen, Farach-Colton 2002; Weinberger et al., 0902.2206) with one sign per block. The input embedding
  is the linear layer of one-hot x.
- Rotation: a step looks at one in `rotation` of the transformer blocks, in an order drawn for each round, and what it
  sees counts `rotation` times. Every step looks at the embeddings, in which most of the early gradient lies.

Signs and order depend on (seed, step) only. So errors average out in the reward's moving average instead of becoming a
bias, and a resumed run draws the same signs and order, as do data-parallel ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acodm_cli.alignment.block_sketch import BlockSketch, num_blocks
from acodm_cli.alignment.probe import GradientProbe, Layer, LayerWatch


def sums_by_group(delta_BTp: Tensor, x_BTq: Tensor, slots_B: Tensor, num_slots: int) -> Tensor:
    """Returns Σ_{t∈g} δ_t x_tᵀ for each group g. [n, p, q]"""
    sketch_Bpq = torch.bmm(delta_BTp.transpose(1, 2), x_BTq)
    return sketch_Bpq.new_zeros(num_slots, *sketch_Bpq.shape[1:]).index_add_(0, slots_B, sketch_Bpq)


class SketchedWeightGradient(torch.autograd.Function):
    """The identity on y, whose backward pass gives the virtual weights [n, p, q] the sketch S_g as their gradient.

    y = (W + Aᵀ V[g] B) x with V = 0 has dL/dV[g] = A (Σ_{t∈g} δ_t x_tᵀ) Bᵀ = S_g.
    """

    @staticmethod
    def forward(
        ctx: Any, y_BTO: Tensor, x_BTI: Tensor, virtual_npq: Tensor, slots_B: Tensor, signs_J: Tensor, signs_L: Tensor, size: int
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x_BTI, slots_B, signs_J, signs_L)
        ctx.size, ctx.num_slots = size, len(virtual_npq)
        return y_BTO.view_as(y_BTO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BTI, slots_B, signs_J, signs_L = ctx.saved_tensors
        delta_BTp = BlockSketch(signs_J, ctx.size)(grads[0])
        x_BTq = BlockSketch(signs_L, ctx.size)(x_BTI)
        return grads[0], None, sums_by_group(delta_BTp, x_BTq, slots_B, ctx.num_slots), None, None, None, None


class SketchedEmbeddingGradient(torch.autograd.Function):
    """Does for an embedding y = Wᵀ onehot(id) what `SketchedWeightGradient` does for a linear layer. signs_J: the signs
    of the vocabulary. signs_L: the signs of the hidden size."""

    @staticmethod
    def forward(
        ctx: Any, y_BTD: Tensor, ids_BT: Tensor, virtual_npq: Tensor, slots_B: Tensor, signs_J: Tensor, signs_L: Tensor, size: int
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(ids_BT, slots_B, signs_J, signs_L)
        ctx.size, ctx.virtual_shape = size, virtual_npq.shape
        return y_BTD.view_as(y_BTD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ids_BT, slots_B, signs_J, signs_L = ctx.saved_tensors
        num_slots, p, q = ctx.virtual_shape
        delta_BTq = BlockSketch(signs_L, ctx.size)(grads[0])
        buckets_BT, signs_BT = BlockSketch(signs_J, ctx.size).of_one_hot(ids_BT)
        rows_N = (slots_B[:, None] * p + buckets_BT).flatten()
        grad_RQ = delta_BTq.new_zeros(num_slots * p, q)
        grad_RQ.index_add_(0, rows_N, (delta_BTq * signs_BT.unsqueeze(-1)).flatten(0, 1))
        return grads[0], None, grad_RQ.view(num_slots, p, q), None, None, None, None


class SketchWatch(LayerWatch):
    """Watches a layer by a sketch of its gradients. signs: those of its weight's two sides, rows and columns."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name)
        self.size = size
        self.signs: tuple[Tensor, Tensor]

    def record(self, y_BTO: Tensor, x_BTI: Tensor) -> Tensor:
        function = SketchedWeightGradient if x_BTI.is_floating_point() else SketchedEmbeddingGradient
        return function.apply(y_BTO, x_BTI, self.virtual, self.slots_B, *self.signs, self.size)


class SketchProbe(GradientProbe):
    """Estimates gradients by sketches, the default. It takes n·p·q floats per weight."""

    reads_whole_gradients = False

    def __init__(
        self,
        layers: dict[str, Layer],
        num_domains: int,
        halves: bool,
        seed: int,
        size: int = 64,
        rotation: int = 1,
        device: torch.device | None = None,
        num_guides: int = 0,
    ) -> None:
        """seed: decides signs and order. size: the features kept per side of a weight (p and q). rotation: one
        transformer block in so many is looked at per step. The other arguments are those of `GradientProbe`."""
        self.size, self.rotation = size, rotation
        self.seed = seed
        super().__init__(layers, num_domains, halves, device, num_guides)
        self.signs = torch.Generator(self.device)
        # The signs of all weights' two sides are drawn as one vector per step.
        self._sides = [(name, side) for name in self.shapes for side in (0, 1)]
        self._lengths = [num_blocks(self.shapes[name][side], size) for name, side in self._sides]
        self._signs: dict[tuple[str, int], Tensor] = {}
        self._block = {name: _block_number(name) for name in self.shapes}

    def virtual_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        p, q = (min(features, self.size) for features in shape)
        return p, q

    def importance(self, name: str) -> float:
        return 1.0 if self._block[name] is None else float(self.rotation)

    def prepare(self, step: int) -> None:
        blocks = self._blocks_of(step)
        self.watched = {name for name, block in self._block.items() if block is None or block in blocks}
        self.signs.manual_seed(self._seed_of(step))
        total = sum(self._lengths)
        bits = torch.randint(0, 2, (total,), generator=self.signs, device=self.device, dtype=torch.float32)
        self._signs = dict(zip(self._sides, (2 * bits - 1).split(self._lengths), strict=True))
        for name, watch in self.watches.items():
            owner = self.owner[name]
            assert isinstance(watch, SketchWatch)
            watch.signs = self._signs[owner, 0], self._signs[owner, 1]

    def _seed_of(self, number: int) -> int:
        return (self.seed * 1_000_003 + number) % 2**63

    def _blocks_of(self, step: int) -> set[int]:
        """Returns the blocks that a step looks at: each block is in one step of every round of `rotation` steps, and in
        any one step with probability 1/rotation."""
        rotation = self.rotation
        blocks = sorted({block for block in self._block.values() if block is not None})
        places: list[int | None] = [*blocks, *[None] * (-len(blocks) % rotation)]
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(self._seed_of(step // rotation)))
        chosen = (places[index] for index in order[step % rotation :: rotation].tolist())
        return {block for block in chosen if block is not None}

    def make_watch(self, name: str) -> LayerWatch:
        return SketchWatch(name, self.size)

    def _owner_of(self, head: nn.Module) -> str | None:
        return next((self.owner[name] for name, layer in self.layers.items() if layer is head), None)

    def output_sketch(self, head: nn.Module) -> BlockSketch | None:
        name = self._owner_of(head)
        return BlockSketch(self._signs[name, 0], self.size) if name and self.slots_B is not None else None

    def add_output(self, head: nn.Module, delta_BTp: Tensor, x_BTI: Tensor) -> None:
        name = self._owner_of(head)
        assert name is not None
        assert self.slots_B is not None
        with torch.autocast(self.device.type, enabled=False):
            x_BTq = BlockSketch(self._signs[name, 1], self.size)(x_BTI)
            found_npq = sums_by_group(delta_BTp, x_BTq, self.slots_B, self.capacity)
        virtual = self.virtual[name]
        virtual.grad = found_npq if virtual.grad is None else virtual.grad + found_npq


def _block_number(name: str) -> int | None:
    """The number of a layer's block: 3 for `gpt_neox.layers.3.mlp.dense_h_to_4h`, None for a layer outside of any."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
