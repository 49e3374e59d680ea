"""Random tokens of sequences, from which sums over all tokens are estimated without bias, and so are products of these.

A sequence is cut into strata of about 2m neighbouring tokens. Two different tokens of each are drawn, evenly and independently of
all other strata, and each counts w = |stratum| / 2 times. For vectors G_t, such as gradients of tokens, this gives:

- E[Σ w G_t] = Σ G_t; and products of the estimates of two sequences are unbiased, since their draws are independent.
- The square of an estimate is too large on average. But every pair of tokens has a chance to be drawn, so the excess can be
  estimated (Horvitz and Thompson 1952): for the two tokens a and b of a stratum it is w (w - 1) ‖G_a - G_b‖². With all tokens of a
  stratum of two, w is 1, and the excess 0.

Shape letters: B sequences, T positions, S strata, k = 2S tokens that are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class TokenSample:
    """The tokens that are drawn. positions_Bk: where they are in each sequence; those of a stratum follow each other. weights_k:
    how often each counts. edges_S: the position at which each stratum begins, and the end of the last, on the host. [S + 1]"""

    positions_Bk: Tensor
    weights_k: Tensor
    edges_S: NDArray[np.int64]

    def of_rows(self, rows: slice | Tensor) -> TokenSample:
        """The draws of some of the sequences."""
        return TokenSample(self.positions_Bk[rows], self.weights_k, self.edges_S)

    def merged(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Returns the tokens that are drawn [B·k] and the edges of the strata [B·S + 1], where all sequences are one of B·T tokens."""
        starts_B1 = np.arange(len(self.positions_Bk))[:, None] * self.edges_S[-1]
        edges = np.append(starts_B1 + self.edges_S[:-1], len(starts_B1) * self.edges_S[-1])
        return (self.positions_Bk + torch.from_numpy(starts_B1).to(self.positions_Bk.device)).flatten(), edges


def draw_tokens(batch: int, seq_len: int, every: int, generator: torch.Generator) -> TokenSample:
    """Draws about one token in `every` of each sequence, two at least. generator: of the device where the draws are wanted."""
    assert seq_len >= 2
    strata = max(1, seq_len // (2 * every))
    edges_S = np.arange(strata + 1) * seq_len // strata
    device = generator.device
    starts_S, sizes_S = (torch.from_numpy(of_S).to(device) for of_S in (edges_S[:-1], np.diff(edges_S)))
    random_2BS = torch.randint(2**31, (2, batch, strata), generator=generator, device=device)
    one_BS = random_2BS[0] % sizes_S
    other_BS = (one_BS + 1 + random_2BS[1] % (sizes_S - 1)) % sizes_S
    positions_Bk = (torch.stack([one_BS, other_BS], dim=2) + starts_S[:, None]).flatten(1)
    return TokenSample(positions_Bk, (sizes_S / 2).repeat_interleave(2), edges_S)


def excess_of_squares(squares_Bk: Tensor, products_BS: Tensor, weights_k: Tensor) -> Tensor:
    """Returns by how much ‖Σ w G_t‖² is too large on average. squares_Bk: ‖G_t‖². products_BS: ⟨G_a, G_b⟩ of the two of a stratum.
    [B]"""
    weights_S = weights_k[::2]
    distances_BS = squares_Bk.unflatten(1, (-1, 2)).sum(2) - 2 * products_BS
    return (distances_BS * (weights_S * (weights_S - 1))).sum(1)
