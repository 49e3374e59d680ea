"""Estimates per-domain gradients and their Gram matrix from one backward pass."""
