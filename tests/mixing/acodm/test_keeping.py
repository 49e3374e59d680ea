from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.mixing.acodm.keeping import Keeping


def test_prices_by_hand() -> None:
    """Two domains are learned. With a budget of 2%, 3.5% are allowed at the peak of the learning rate. Part 0 has risen by 7%: e = 1,
    I = 0.2, λ = 1.2 / 2. Part 1 is as it was: λ = 0."""
    keeping = Keeping(2, 0.02, learned=2)
    assert keeping.prices_J.tolist() == [0, 0]
    keeping.update(np.array([4.28, 3.0]), np.array([4.0, 3.0]), 1e-3, 0.0)
    assert keeping.prices_J.tolist() == pytest.approx([0.6, 0.0])
    # At half of it, 2.5% are allowed, and part 0 was at 7%: e = 1.8, λ = (0.2 + 1.8) / 2. Part 1 rises to the average
    # 0.2 · 20% = 4%: e = 0.6, I = 0.12, λ = 0.72 / 2.
    keeping.update(np.array([np.nan, 3.6]), np.array([np.nan, 3.0]), 5e-4, 0.5)
    assert keeping.prices_J.tolist() == pytest.approx([1.0, 0.36])


def test_a_price_falls_when_the_loss_is_back_and_is_bounded() -> None:
    keeping = Keeping(1, 0.01, learned=1)
    for _ in range(100):
        keeping.update(np.array([5.0]), np.array([4.0]), 1e-3, 0.0)
    assert keeping.prices_J.tolist() == [10.0]
    again = Keeping(1, 0.01, learned=1)
    again.load_state_dict(keeping.state_dict())
    for _ in range(200):
        again.update(np.array([4.0]), np.array([4.0]), 1e-3, 0.0)
    assert again.prices_J.tolist() == [0.0]


def test_the_budget_holds_at_the_end_whatever_the_learning_rate_does() -> None:
    """A rise of 1.6% is allowed at first with a budget of 2%, and priced at the end of a run whose learning rate is constant."""
    keeping = Keeping(1, 0.02, learned=1)
    keeping.update(np.array([4.064]), np.array([4.0]), 1e-3, 0.1)
    assert keeping.prices_J.tolist() == [0.0]
    keeping.update(np.array([4.064]), np.array([4.0]), 1e-3, 0.99)
    assert keeping.prices_J[0] > 0


def test_a_look_that_says_nothing_changes_nothing() -> None:
    keeping = Keeping(2, 0.02, learned=1)
    keeping.update(np.array([np.inf, 3.0]), np.array([4.0, 0.0]), 1e-3, 0.0)
    assert keeping.prices_J.tolist() == [0.0, 0.0]
    assert not keeping.rises.seen.any()
