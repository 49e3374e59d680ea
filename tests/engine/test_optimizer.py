from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from acodm_cli.engine.optimizer import learning_rate
from acodm_cli.errors import UsageError
from acodm_cli.runs.settings import RunSettings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Of 20 steps, 2 are warm-up; the other 18 are what cosine and linear fall over. 5 of 20 are the decay of wsd.
        ({"lr_schedule": "cosine"}, {0: 0.5, 2: 1.0, 8: 0.775, 11: 0.55, 14: 0.325}),
        ({"lr_schedule": "linear"}, {0: 0.5, 2: 1.0, 8: 0.7, 11: 0.55, 19: 0.15}),
        ({"lr_schedule": "wsd", "lr_decay_share": 0.25}, {0: 0.5, 14: 1.0, 15: 1.0, 16: 0.82, 19: 0.28}),
        ({"lr_schedule": "wsd", "lr_min": 0.0}, {1: 1.0, 16: 1.0, 17: 0.75, 18: 0.5, 19: 0.25}),
        ({"lr_schedule": "constant"}, {0: 0.5, 1: 1.0, 2: 1.0, 11: 1.0, 19: 1.0}),
    ],
)
def test_learning_rates_by_hand(changes: dict[str, Any], expected: dict[int, float]) -> None:
    settings = RunSettings(steps=20, lr=1.0, lr_warmup=0.1, **changes)
    assert {step: learning_rate(step, settings) for step in expected} == pytest.approx(expected)
    rates = [learning_rate(step, settings) for step in range(20)]
    assert all(a >= b for a, b in itertools.pairwise(rates[1:]))


@pytest.mark.parametrize("steps", [1, 7, 300, 41_667])
def test_the_default_is_a_cosine_to_a_tenth_bit_for_bit(steps: int) -> None:
    settings, warmup = RunSettings(steps=steps, lr=2.5e-4), max(1, round(0.01 * steps))
    for step in range(warmup, steps, max(1, steps // 200)):
        progress = (step - warmup) / max(1, steps - warmup)
        assert learning_rate(step, settings) == 2.5e-4 * (0.1 + (1 - 0.1) * 0.5 * (1 + math.cos(math.pi * progress)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr_decay_share": 0.2}, "--lr-decay-share 0.2 does nothing with --lr-schedule cosine; leave it out"),
        ({"lr_schedule": "constant", "lr_min": 0.0}, "--lr-min 0 does nothing with --lr-schedule constant"),
        ({"lr_schedule": "wsd", "lr_warmup": 0.9}, "--lr-warmup 0.9 and the decay of wsd over 0.2 of the run are more"),
        ({"lr_schedule": "wdc"}, "--lr-schedule wdc; did you mean wsd?"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunSettings(**changes)
    assert says in str(caught.value)
