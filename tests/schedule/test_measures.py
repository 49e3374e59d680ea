from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.schedule.measures import divergence, entropy, l1


def test_entropy_and_divergence() -> None:
    assert entropy(np.full(4, 0.25)) == pytest.approx(np.log(4))
    assert entropy(np.array([1.0, 0.0])) == 0
    assert divergence(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(
        0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    )
    assert divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf
    assert divergence(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0
    assert l1(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])) == pytest.approx(0.5)
