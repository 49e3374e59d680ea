"""Sketches per-domain gradients, to get unbiased inner products of all weight matrices' gradients at little cost.

For a linear layer y = W x the gradient of group g is Σ_{t∈g} δ_t x_tᵀ. Three things make its inner products cheap:

- Two-sided block sketch: S_g = Σ_{t∈g} (A δ_t)(B x_t)ᵀ. A and B add up blocks of features with random signs (one pass
  of additions); a side that is small already is left as it is. E[AᵀA] = I, so E⟨S_g, S_h⟩ = ⟨g_g, g_h⟩. It is a count
  sketch (Charikar, Chen, Farach-Colton 2002; Weinberger et al., 0902.2206) with one sign per block. The input embedding
  is the linear layer of one-hot x.
- Tokens: a step looks at no more than it needs for the noise of the sketch to matter more than that of the draw, so that a large
  batch costs little: at one token in so many of each sequence (`token_sample`), and at all of the few of a guide pass.
- Rotation: a step looks at one in `rotation` of the transformer blocks, in an order drawn for each round, and what it
  sees counts `rotation` times. Every step looks at the embeddings, in which most of the early gradient lies.

Signs, order and tokens depend on (seed, step) only. So errors average out in the reward's moving average instead of becoming a
bias, and a resumed run draws the same, as do data-parallel ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acodm_cli.alignment.block_sketch import BlockSketch, num_blocks
from acodm_cli.alignment.probe import GradientProbe, Layer, LayerWatch, LogitSketch
from acodm_cli.alignment.token_sample import TokenSample, draw_tokens, excess_of_squares

# Where sketches cost next to nothing, nothing is won by looking at fewer tokens.
MOST_ONE_IN = 16


def one_in(least: int | None, tokens: int) -> int:
    """Returns m, where one token in m is looked at. least: how many at least, None for all. tokens: how many a step has."""
    return 1 if least is None else min(max(tokens // least, 1), MOST_ONE_IN)


def drawn(tokens: TokenSample | None) -> tuple[Tensor | None, Tensor | None]:
    """Returns (their positions in each sequence [B, k], how often each counts [k]), None for all tokens."""
    return (tokens.positions_Bk, tokens.weights_k) if tokens else (None, None)


def drawn_tokens(x_BTF: Tensor, positions_Bk: Tensor | None) -> Tensor:
    """Returns the drawn tokens of each sequence, all if positions is None. [B, k, F]"""
    if positions_Bk is None:
        return x_BTF
    rows_B1 = torch.arange(len(x_BTF), device=x_BTF.device)[:, None]
    return x_BTF[rows_B1, positions_Bk]


def sums_by_group(
    delta_Bkp: Tensor, x_Bkq: Tensor, slots_B: Tensor, num_slots: int, weights_k: Tensor | None
) -> Tensor:
    """Returns S_g = Σ_{t∈g} w_t δ_t x_tᵀ for each group g, and behind it by how much ‖S_g‖² is too large. [n, p·q + 1]"""
    if weights_k is None:
        return _by_group(torch.bmm(delta_Bkp.transpose(1, 2), x_Bkq), None, slots_B, num_slots)
    excess_B = excess_of_squares(
        delta_Bkp.square().sum(2) * x_Bkq.square().sum(2), _products(delta_Bkp) * _products(x_Bkq), weights_k
    )
    weighted_Bpk = (delta_Bkp * weights_k[:, None]).transpose(1, 2)
    return _by_group(torch.bmm(weighted_Bpk, x_Bkq), excess_B, slots_B, num_slots)


def _products(x_BkF: Tensor) -> Tensor:
    """The inner products of the two tokens of each stratum. [B, S]"""
    return (x_BkF[:, ::2] * x_BkF[:, 1::2]).sum(2)


def _by_group(sketch_Bpq: Tensor, excess_B: Tensor | None, slots_B: Tensor, num_slots: int) -> Tensor:
    together_BP = F.pad(sketch_Bpq.flatten(1), (0, 1))
    if excess_B is not None:
        together_BP[:, -1] = excess_B
    return together_BP.new_zeros(num_slots, together_BP.shape[1]).index_add_(0, slots_B, together_BP)


class SketchedWeightGradient(torch.autograd.Function):
    """The identity on y, whose backward pass gives the virtual weights [n, p·q + 1] the sketch S_g as their gradient.

    y = (W + Aᵀ V[g] B) x with V = 0 has dL/dV[g] = A (Σ_{t∈g} δ_t x_tᵀ) Bᵀ = S_g.
    """

    @staticmethod
    def forward(
        ctx: Any, y_BTO: Tensor, x_BTI: Tensor, virtual_nP: Tensor, slots_B: Tensor, signs_J: Tensor, signs_L: Tensor,
        positions_Bk: Tensor | None, weights_k: Tensor | None, size: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x_BTI, slots_B, signs_J, signs_L, positions_Bk, weights_k)
        ctx.size, ctx.num_slots = size, len(virtual_nP)
        return y_BTO.view_as(y_BTO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BTI, slots_B, signs_J, signs_L, positions_Bk, weights_k = ctx.saved_tensors
        delta_Bkp = BlockSketch(signs_J, ctx.size)(drawn_tokens(grads[0], positions_Bk))
        x_Bkq = BlockSketch(signs_L, ctx.size)(drawn_tokens(x_BTI, positions_Bk))
        grad_nP = sums_by_group(delta_Bkp, x_Bkq, slots_B, ctx.num_slots, weights_k)
        return grads[0], None, grad_nP, *[None] * 6


class SketchedEmbeddingGradient(torch.autograd.Function):
    """Does for an embedding y = Wᵀ onehot(id) what `SketchedWeightGradient` does for a linear layer. signs_J: the signs
    of the vocabulary. signs_L: the signs of the hidden size."""

    @staticmethod
    def forward(
        ctx: Any, y_BTD: Tensor, ids_BT: Tensor, virtual_nP: Tensor, slots_B: Tensor, signs_J: Tensor, signs_L: Tensor,
        positions_Bk: Tensor | None, weights_k: Tensor | None, size: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(ids_BT, slots_B, signs_J, signs_L, positions_Bk, weights_k)
        ctx.size, (ctx.num_slots, ctx.width) = size, virtual_nP.shape
        return y_BTD.view_as(y_BTD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ids_BT, slots_B, signs_J, signs_L, positions_Bk, weights_k = ctx.saved_tensors
        delta_Bkq = BlockSketch(signs_L, ctx.size)(drawn_tokens(grads[0], positions_Bk))
        ids_Bk = ids_BT if positions_Bk is None else ids_BT.gather(1, positions_Bk)
        buckets_Bk, signs_Bk = BlockSketch(signs_J, ctx.size).of_one_hot(ids_Bk)
        signed_Bkq, excess_B = delta_Bkq * signs_Bk.unsqueeze(-1), None
        if weights_k is not None:
            together_BS = buckets_Bk[:, ::2] == buckets_Bk[:, 1::2]
            excess_B = excess_of_squares(delta_Bkq.square().sum(2), _products(signed_Bkq) * together_BS, weights_k)
            signed_Bkq = signed_Bkq * weights_k[:, None]
        q = signed_Bkq.shape[2]
        p = ctx.width // q
        sketch_Bpq = signed_Bkq.new_zeros(len(ids_BT), p, q)
        rows_N = (p * torch.arange(len(ids_BT), device=ids_BT.device)[:, None] + buckets_Bk).flatten()
        sketch_Bpq.flatten(0, 1).index_add_(0, rows_N, signed_Bkq.flatten(0, 1))
        return grads[0], None, _by_group(sketch_Bpq, excess_B, slots_B, ctx.num_slots), *[None] * 6


class SketchWatch(LayerWatch):
    """Watches a layer by a sketch of its gradients. signs: those of its weight's two sides, rows and columns. tokens: those
    that are looked at, None for all."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name)
        self.size = size
        self.signs: tuple[Tensor, Tensor]
        self.tokens: TokenSample | None = None

    def record(self, y_BTO: Tensor, x_BTI: Tensor) -> Tensor:
        function = SketchedWeightGradient if x_BTI.is_floating_point() else SketchedEmbeddingGradient
        return function.apply(y_BTO, x_BTI, self.virtual, self.slots_B, *self.signs, *drawn(self.tokens), self.size)


class SketchProbe(GradientProbe):
    """Estimates gradients by sketches, the default. It takes n·(p·q + 1) floats per weight."""

    reads_whole_gradients = False

    def __init__(
        self,
        layers: dict[str, Layer],
        num_domains: int,
        halves: bool,
        seed: int,
        size: int = 64,
        rotation: int = 1,
        tokens: int | None = None,
        device: torch.device | None = None,
        num_guides: int = 0,
    ) -> None:
        """seed: decides signs, order and tokens. size: the features kept per side of a weight (p and q). rotation: one
        transformer block in so many is looked at per step. tokens: a step looks at so many of its tokens at least, None for all.
        The other arguments are those of `GradientProbe`."""
        self.size, self.rotation, self.num_tokens = size, rotation, tokens
        self.seed = seed
        self.tokens: TokenSample | None = None  # of the global batch
        self.tokens_here: TokenSample | None = None  # of the micro-batch
        super().__init__(layers, num_domains, halves, device, num_guides)
        self.generator = torch.Generator(self.device)
        # The signs of all weights' two sides are drawn as one vector per step.
        self._sides = [(name, side) for name in self.shapes for side in (0, 1)]
        self._lengths = [num_blocks(self.shapes[name][side], size) for name, side in self._sides]
        self._signs: dict[tuple[str, int], Tensor] = {}
        self._block = {name: _block_number(name) for name in self.shapes}

    def virtual_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        p, q = (min(features, self.size) for features in shape)
        return (p * q + 1,)

    def importance(self, name: str) -> float:
        return 1.0 if self._block[name] is None else float(self.rotation)

    def prepare(self, step: int) -> None:
        self.tokens = None
        blocks = self._blocks_of(step)
        self.watched = {name for name, block in self._block.items() if block is None or block in blocks}
        self.generator.manual_seed(self._seed_of(step))
        total = sum(self._lengths)
        bits = torch.randint(0, 2, (total,), generator=self.generator, device=self.device, dtype=torch.float32)
        self._signs = dict(zip(self._sides, (2 * bits - 1).split(self._lengths), strict=True))
        for name, watch in self.watches.items():
            owner = self.owner[name]
            assert isinstance(watch, SketchWatch)
            watch.signs = self._signs[owner, 0], self._signs[owner, 1]

    def begin(self, rows: slice | Tensor, seq_len: int) -> None:
        super().begin(rows, seq_len)
        assert self.slots_B is not None
        # A guide pass has few tokens, and those that count are fewer.
        self.tokens_here = None
        every = one_in(self.num_tokens, self.batch * seq_len)
        first = int(rows[0]) if isinstance(rows, Tensor) else rows.start or 0
        if every > 1 and first < self.batch:
            self.tokens = self.tokens or draw_tokens(self.batch, seq_len, every, self.generator)
            self.tokens_here = self.tokens.of_rows(rows)
        for watch in self.watches.values():
            assert isinstance(watch, SketchWatch)
            watch.tokens = self.tokens_here

    def products(self, sum_nP: Tensor) -> Tensor:
        sketch_nP, excess_n = sum_nP[:, :-1], sum_nP[:, -1]
        return sketch_nP @ sketch_nP.T - excess_n.diag()

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

    def output_sketch(self, head: nn.Module) -> LogitSketch | None:
        name = self._owner_of(head)
        if name is None or self.slots_B is None:
            return None
        tokens_n, edges = self.tokens_here.merged() if self.tokens_here else (None, None)
        return LogitSketch(BlockSketch(self._signs[name, 0], self.size), tokens_n, edges)

    def add_output(self, head: nn.Module, delta_np: Tensor, x_BTI: Tensor) -> None:
        name = self._owner_of(head)
        assert name is not None
        assert self.slots_B is not None
        with torch.autocast(self.device.type, enabled=False):
            positions_Bk, weights_k = drawn(self.tokens_here)
            x_Bkq = BlockSketch(self._signs[name, 1], self.size)(drawn_tokens(x_BTI, positions_Bk))
            delta_Bkp = delta_np.unflatten(0, x_Bkq.shape[:2])
            found_nP = sums_by_group(delta_Bkp, x_Bkq, self.slots_B, self.capacity, weights_k)
        virtual = self.virtual[name]
        virtual.grad = found_nP if virtual.grad is None else virtual.grad + found_nP


def _block_number(name: str) -> int | None:
    """The number of a layer's block: 3 for `gpt_neox.layers.3.mlp.dense_h_to_4h`, None for a layer outside of any."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
