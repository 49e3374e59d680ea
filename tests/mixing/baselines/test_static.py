from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.mixing.baselines.static import natural_weights, temperature_weights, uniform_weights

TOKENS = np.array([100.0, 900.0, 400.0])


def test_natural_and_uniform() -> None:
    assert natural_weights(TOKENS) == pytest.approx([1 / 14, 9 / 14, 4 / 14])
    assert uniform_weights(4) == pytest.approx([0.25] * 4)


def test_temperature_two_takes_square_roots() -> None:
    assert temperature_weights(TOKENS, 2.0) == pytest.approx([10 / 60, 30 / 60, 20 / 60])


def test_temperature_lies_between_natural_and_uniform() -> None:
    assert temperature_weights(TOKENS, 1.0) == pytest.approx(natural_weights(TOKENS))
    assert temperature_weights(TOKENS, 1e9) == pytest.approx(uniform_weights(3))
