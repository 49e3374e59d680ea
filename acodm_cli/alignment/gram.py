"""The Gram matrix of domain gradients, and what AC-ODM reads off it (arXiv 2505.23878, section 3).

H_ij = ⟨g_i, g_j⟩ over the selected parameters, where g_i is the gradient of domain i's mean loss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gradient_alignment(gram_KK: Array) -> Array:
    """W_i = Σ_{j≠i} H_ij: alignment of domain i's gradient with those of all other domains. [K]"""
    return gram_KK.sum(axis=1) - np.diag(gram_KK)


def self_magnitude(gram_KK: Array, weights_K: Array) -> float:
    """Σ_i α_i² H_ii, the first term of ‖Gα‖²."""
    return float(np.sum(weights_K**2 * np.diag(gram_KK)))


def interaction_energy(gram_KK: Array, weights_K: Array) -> float:
    """Σ_{i≠j} α_i α_j H_ij, the second term of ‖Gα‖²; J(α) = Σ α_i W_i is its linear surrogate."""
    return float(weights_K @ gram_KK @ weights_K) - self_magnitude(gram_KK, weights_K)
