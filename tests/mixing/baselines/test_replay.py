from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from acodm_cli.mixing.baselines.replay import ReplayMixer
from acodm_cli.schedule.timeline import Timeline
from tests.mixing.feedback import observation

WEIGHTS = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
TIMELINE = Timeline(WEIGHTS, np.arange(1, 4), np.array([100, 200, 300]))


def replayed(by: str, steps: int, tokens_per_step: int) -> list[float]:
    mixer = ReplayMixer(TIMELINE, by)  # type: ignore[arg-type]
    now = replace(observation(), total_steps=steps, total_tokens=steps * tokens_per_step)
    rows = [mixer.weights(replace(now, step=step, tokens=step * tokens_per_step)) for step in range(steps)]
    assert all(row.sum() == pytest.approx(1) for row in rows)
    return [row[1] for row in rows]


@pytest.mark.parametrize("by", ["progress", "steps", "tokens"])
def test_same_budget_replays_exactly(by: str) -> None:
    assert replayed(by, 3, 100) == [0.0, 0.5, 1.0]


def test_progress_stretches_over_the_budget() -> None:
    assert replayed("progress", 6, 100) == pytest.approx([0.0, 0.125, 0.375, 0.625, 0.875, 1.0])


def test_steps_hold_the_last_weights() -> None:
    assert replayed("steps", 5, 100) == [0.0, 0.5, 1.0, 1.0, 1.0]


def test_tokens_follow_the_recorded_count() -> None:
    assert replayed("tokens", 6, 50) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
