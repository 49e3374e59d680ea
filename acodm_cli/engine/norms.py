"""Reads ‖ω‖ and ‖Δω‖ at relative depths of the model, for the state of AC-ODM (arXiv 2505.23878, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acodm_cli.engine.distributed import whole
from acodm_cli.engine.models import transformer_blocks


class NormReader:
    """Reads the L2 norms of one weight matrix per relative depth, and of its change since the last reading.

    Relative depth r in [0, 1] of an n-block model is block round(r (n-1)), so that models of any depth give as many
    numbers. The matrix is the block's last square linear layer, which is the attention's output projection: the copies
    that ‖Δω‖ needs are then the smallest possible, L·d² floats for a hidden size of d.
    """

    def __init__(self, model: nn.Module, depths: tuple[float, ...]) -> None:
        blocks = transformer_blocks(model) if depths else []
        self.weights = [_square_weight(blocks[round(depth * (len(blocks) - 1))]) for depth in depths]
        self.nothing = torch.zeros(0, device=next(model.parameters()).device)
        self.previous = [weight.detach().clone() for weight in self.weights]
        self.initial_L = self.read()[0]

    @torch.no_grad()
    def read(self) -> tuple[Tensor, Tensor]:
        """Returns (‖ω‖ [L], ‖Δω‖ [L]) on the device. The weights read become the reference of the next ‖Δω‖."""
        if not self.weights:
            return self.nothing, self.nothing
        norms_L = torch.stack([whole(weight.norm()) for weight in self.weights])
        # The difference is taken in place: a temporary per weight would cost more than the arithmetic.
        updates_L = torch.stack([whole(p.sub_(w).norm()) for w, p in zip(self.weights, self.previous, strict=True)])
        for previous, weight in zip(self.previous, self.weights, strict=True):
            previous.copy_(weight)
        return norms_L, updates_L

    def restore(self, initial_L: Tensor) -> None:
        """Makes weights that were just loaded the reference of the next ‖Δω‖. initial_L: the run's first norms."""
        for previous, weight in zip(self.previous, self.weights, strict=True):
            previous.copy_(weight.detach())
        self.initial_L = initial_L


def _square_weight(block: nn.Module) -> Tensor:
    linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
    square = [module.weight for module in linear if module.in_features == module.out_features]
    # Not all models are made of nn.Linear: GPT-2's matrices are a layer type of its own.
    return (square or [parameter for parameter in block.parameters() if parameter.dim() == 2])[-1]
