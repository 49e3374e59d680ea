from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.mixing.acodm.keeping import Keeping


def test_prices_by_hand() -> None:
    """Part 0 has risen by 4% with a budget of 2%: e = 2 - ½ = 1.5, I = 0.3, λ = 1.8. Part 1 is as it was: e = -½, λ = 0."""
    keeping = Keeping(2, 0.02)
    assert keeping.prices_J.tolist() == [0, 0]
    keeping.update(np.array([4.16, 3.0]), np.array([4.0, 3.0]))
    assert keeping.prices_J.tolist() == pytest.approx([1.8, 0.0])
    # A look without part 0 leaves it; part 1 rises to the average 0.2 · 4% = 0.8%: e = 0.4 - ½.
    keeping.update(np.array([np.nan, 3.12]), np.array([np.nan, 3.0]))
    assert keeping.prices_J.tolist() == pytest.approx([1.8, 0.0])
    # Then 0.8 · 0.8% + 0.2 · 4% = 1.44%: e = 0.22, I = 0.044, λ = 0.264.
    keeping.update(np.array([np.nan, 3.12]), np.array([np.nan, 3.0]))
    assert keeping.prices_J.tolist() == pytest.approx([1.8, 0.264])


def test_a_price_falls_when_the_loss_is_back_and_is_bounded() -> None:
    keeping = Keeping(1, 0.01)
    for _ in range(100):
        keeping.update(np.array([5.0]), np.array([4.0]))
    assert keeping.prices_J.tolist() == [10.0]
    again = Keeping(1, 0.01)
    again.load_state_dict(keeping.state_dict())
    for _ in range(200):
        again.update(np.array([4.0]), np.array([4.0]))
    assert again.prices_J.tolist() == [0.0]
