"""The Gram matrix of domain gradients, and what AC-ODM reads off it (arXiv 2505.23878, section 3).

H_ij = ⟨g_i, g_j⟩ over the selected parameters, where g_i is the gradient of domain i's mean loss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gradient_alignment(gram_KK: Array) -> Array:
    """Returns W_i = Σ_{j≠i} H_ij, the alignment of domain i's gradient with those of all other domains. [K]"""
    return gram_KK.sum(axis=1) - np.diag(gram_KK)


def self_magnitude(self_K: Array, weights_K: Array) -> float:
    """Returns Σ_i α_i² ‖g_i‖², the first term of ‖Gα‖².

    self_K: the diagonal of H, or an unbiased estimate of it, NaN where there is none. Domains with NaN are left out: a
    batch lacks the estimate for domains of which it holds fewer than two sequences, whose α_i² is small.
    """
    return float(np.nansum(weights_K**2 * self_K))


def interaction_energy(gram_KK: Array, weights_K: Array) -> float:
    """Returns Σ_{i≠j} α_i α_j H_ij, the second term of ‖Gα‖²; J(α) = Σ α_i W_i is its linear surrogate."""
    off_diagonal_KK = gram_KK - np.diag(np.diag(gram_KK))
    return float(weights_K @ off_diagonal_KK @ weights_K)
