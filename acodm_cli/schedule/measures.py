"""Measures of domain weights: entropy and distances, in nats and as shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def entropy(weights_XK: Array) -> Array:
    """Returns -Σ_i w_i ln w_i over the last axis, in nats; its exponential is the effective number of domains."""
    logs_XK = np.log(np.where(weights_XK > 0, weights_XK, 1.0))
    return np.abs(np.where(weights_XK > 0, weights_XK * logs_XK, 0.0).sum(axis=-1))


def divergence(weights_XK: Array, others_XK: Array) -> Array:
    """Returns KL(w ‖ q) = Σ_i w_i ln(w_i / q_i) over the last axis, in nats; infinite where q lacks what w asks for."""
    asked = weights_XK > 0
    with np.errstate(divide="ignore"):
        ratio_XK = np.log(np.where(asked, weights_XK, 1.0)) - np.log(np.where(asked, others_XK, 1.0))
    return np.where(asked, weights_XK * ratio_XK, 0.0).sum(axis=-1)


def l1(weights_XK: Array, others_XK: Array) -> Array:
    """Returns Σ_i |w_i - q_i| over the last axis: twice the share of sequences that would come from another domain."""
    return np.abs(weights_XK - others_XK).sum(axis=-1)
