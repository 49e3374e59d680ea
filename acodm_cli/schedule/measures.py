"""Measures of domain weights: entropy and distances, in nats and as shares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Probabilities are taken by NumPy, and so by `datasets.interleave_datasets`, if their float64 sum is within 1.5e-8 of 1.
_SUM_TOLERANCE = 1e-8


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


def in_single(weights_XK: NDArray[Any]) -> NDArray[np.float32]:
    """Returns weights as float32 whose sum in float64 is 1, so that others can take them for probabilities as they are.

    What rounding leaves over goes to the largest weights, and is less than the last digit of the largest.
    """
    weights_XK = weights_XK.astype(np.float64)
    single_SK = (
        (weights_XK / weights_XK.sum(axis=-1, keepdims=True)).reshape(-1, weights_XK.shape[-1]).astype(np.float32)
    )
    order_SK = np.argsort(-single_SK, axis=-1, kind="stable")
    for column_S in order_SK.T:
        short_S = 1 - single_SK.astype(np.float64).sum(axis=-1)
        rows = np.flatnonzero(np.abs(short_S) > _SUM_TOLERANCE)
        if not len(rows):
            break
        changed = single_SK[rows, column_S[rows]].astype(np.float64) + short_S[rows]
        single_SK[rows, column_S[rows]] = np.maximum(changed, 0).astype(np.float32)
    return single_SK.reshape(weights_XK.shape)
