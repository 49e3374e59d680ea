"""Random sketches of feature vectors whose inner products are unbiased."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class BlockSketch:
    """A random [size, F] matrix A with E[AᵀA] = I. It adds up J blocks of `size` features, with a sign for each block.

    Features that meet in a bucket lie in different blocks, whose signs are independent. One sign per block, and not per
    feature, makes it a product of a vector and a matrix, without a temporary. There are no signs if F ≤ size: the
    features are then left as they are.
    """

    signs_J: Tensor
    size: int

    def __call__(self, x_F: Tensor) -> Tensor:
        """Returns the sketch of features in fp32: [..., F] -> [..., size]."""
        if not len(self.signs_J):
            return x_F.float()
        padded = F.pad(x_F, (0, -x_F.shape[-1] % self.size)) if x_F.shape[-1] % self.size else x_F
        blocks_FJ = padded.unflatten(-1, (-1, self.size))
        if torch.compiler.is_compiling():  # one kernel makes the sum, and reads only what was drawn of x
            return (blocks_FJ.float() * self.signs_J[:, None]).sum(-2)
        return (self.signs_J.to(x_F.dtype) @ blocks_FJ).float()

    def width(self, features: int) -> int:
        """The size of the sketch of so many features."""
        return min(features, self.size)

    def of_one_hot(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the (bucket, sign) that a one-hot vector goes to; both have the shape of index."""
        if not len(self.signs_J):
            return index, torch.ones_like(index, dtype=torch.float32)
        return index % self.size, self.signs_J[index // self.size]


def num_blocks(features: int, size: int) -> int:
    """The number of blocks of `size` features that are added up; 0 if there are at most `size`, left as they are."""
    return 0 if features <= size else -(-features // size)
