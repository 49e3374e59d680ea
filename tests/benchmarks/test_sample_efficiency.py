from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.sample_efficiency import hindsight, steps_to, summary


def runs() -> pd.DataFrame:
    """Two domains, validated at steps 10 and 20; uniform ends at perplexities 4 and 8, mean 6; ours is 10% below at each seed."""
    rows = []
    for mixer, factor in (("uniform", 1.0), ("ac-odm", 0.9)):
        for seed, scale in ((0, 1.0), (1, 1.1)):
            for step, perplexities in ((10, (8.0, 12.0)), (20, (4.0, 8.0))):
                for domain, value in zip(("a", "b"), perplexities, strict=True):
                    calm = dict.fromkeys(
                        ("l1_change_median", "entropy_least", "weight_least", "weight_most", "at_floor"), 0.1
                    )
                    loss = math.log(value * factor * scale)
                    rows.append({"mixer": mixer, "seed": seed, "step": step, "domain": domain, "validation_loss": loss, **calm})  # fmt: skip
    return pd.DataFrame(rows)


def test_steps_to_a_target() -> None:
    steps, values = np.array([10, 20, 30]), np.array([9.0, 5.0, 6.0])
    assert steps_to(7.0, steps, values) == pytest.approx(15.0)
    assert steps_to(9.5, steps, values) == 10.0
    assert math.isnan(steps_to(4.0, steps, values))


def test_table_by_hand() -> None:
    uniform, ours = summary(runs())
    assert uniform["perplexity"] == pytest.approx((6.0 + 6.6) / 2)
    assert uniform["perplexity_sd"] == pytest.approx(0.6 / math.sqrt(2))
    assert ours["perplexity"] == pytest.approx(0.9 * uniform["perplexity"])
    assert (ours["below_uniform"], ours["below_uniform_sd"]) == pytest.approx((10.0, 0.0))
    assert uniform["steps_to_uniform"] == pytest.approx(1.0)
    # From 9 at step 10 to 5.4 at step 20, 6 is reached at 18.33.
    assert ours["steps_to_uniform"] == pytest.approx((10 + 10 * 3 / 3.6) / 20)
    assert ours["steps_to_odm"] is None
    assert ours["steps_to_natural"] is None
    assert ours["worst_domain"] == "b"


def test_hindsight_finds_the_slopes_of_losses_that_follow_its_law() -> None:
    slopes, rows = {"a": 0.2, "b": 0.6}, []
    for mixer, weight_of_a in (("uniform", 0.5), ("x", 0.3), ("y", 0.8)):
        for seed in (0, 1):
            for step in (10, 20):
                for domain, weight in (("a", weight_of_a), ("b", 1 - weight_of_a)):
                    loss = 2 + seed - slopes[domain] * math.log(weight) + (20 - step)
                    rows.append({"mixer": mixer, "seed": seed, "step": step, "domain": domain, "weight": weight, "validation_loss": loss})  # fmt: skip
    weights = hindsight(pd.DataFrame(rows))
    # The median of six losses lies between seed 0's highest and seed 1's lowest, at the geometric mean of those weights.
    odds = 0.6 * (0.2 * 0.7) ** (-0.6 / 2) / (0.2 * (0.3 * 0.8) ** (-0.2 / 2))
    assert weights["b"] == pytest.approx(0.95 * odds / (1 + odds) + 0.025)
    assert weights.sum() == pytest.approx(1.0)
