from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.schedule import compose
from acodm_cli.schedule.schedule import Schedule
from tests.schedule.test_schedule import make_schedule


def with_weights(schedule: Schedule, weights_SK: np.ndarray) -> Schedule:
    return replace(schedule, per_domain=schedule.per_domain | {"weight": weights_SK.astype(np.float32)})


def test_between_keeps_both_ends() -> None:
    part = compose.between(make_schedule(10), 3, 5)
    assert part.step_S.tolist() == [3, 4, 5]
    np.testing.assert_array_equal(part.weights_SK, make_schedule(10).weights_SK[2:5])
    assert part.policy is None
    assert compose.between(make_schedule(10), None, 2).step_S.tolist() == [1, 2]
    with pytest.raises(UsageError, match="the schedule has 1 to 10"):
        compose.between(make_schedule(10), 11, None)


def test_thin_takes_means_of_what_is_known_and_sums_samples() -> None:
    whole = make_schedule(6)
    thin = compose.thin(whole, 2)
    assert thin.step_S.tolist() == [2, 4, 6]
    assert thin.tokens_S.tolist() == [384, 768, 1152]
    np.testing.assert_allclose(thin.weights_SK[1], whole.weights_SK[2:4].mean(axis=0), rtol=1e-6)
    assert thin.per_domain["samples"].tolist() == [[8] * 3] * 3
    losses_SK = whole.per_domain["loss"]
    assert np.isnan(losses_SK[2, 1])
    assert thin.per_domain["loss"][1, 1] == losses_SK[3, 1]
    assert np.isnan(thin.per_domain["validation_loss"][1:]).all()


def test_thin_rows_are_equal_parts_of_the_run() -> None:
    whole = make_schedule(600)
    thin = compose.thin(whole, 500)
    assert thin.step_S.tolist() == [300, 600]
    np.testing.assert_allclose(thin.weights_SK.mean(axis=0), whole.weights_SK.mean(axis=0), rtol=1e-6)
    assert len(compose.thin(whole, 10**30)) == 1


def test_a_thin_schedule_says_the_same_by_step_tokens_and_progress() -> None:
    thin = compose.thin(make_schedule(600), 100)
    for step in (50.5, 125.5, 300.5, 480.5):
        by_step = thin.weights(step=step)
        np.testing.assert_allclose(thin.weights(tokens=(step - 1) * 192), by_step, atol=1e-9)
        np.testing.assert_allclose(thin.weights(progress=(step - 0.5) / 600), by_step, atol=1e-9)
    part = compose.between(make_schedule(600), 200, 300)
    np.testing.assert_allclose(part.weights(tokens=249 * 192), part.weights(step=250), atol=1e-9)


def test_average_is_the_mean_mixture() -> None:
    whole = make_schedule(7)
    mean = compose.average(whole)
    assert len(mean) == 1
    np.testing.assert_allclose(mean.weights(progress=0.3), whole.weights_SK.mean(axis=0), rtol=1e-6)
    assert mean.info["composed"] == ["average"]
    weights_K = mean.weights_SK[0]
    assert mean.per_step["entropy"][0] == pytest.approx(-(weights_K * np.log(weights_K)).sum())


def test_smooth_is_a_centred_mean() -> None:
    whole = make_schedule(6)
    smooth = compose.smooth(whole, 3)
    np.testing.assert_allclose(smooth.weights_SK[2], whole.weights_SK[1:4].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(smooth.weights_SK[0], whole.weights_SK[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(smooth.weights_SK.sum(axis=1), 1, rtol=1e-6)
    known = whole.per_domain["loss"][[1, 3], 1]
    assert smooth.per_domain["loss"][2, 1] == pytest.approx(known.mean())


def test_merge_is_the_mean_over_runs_with_its_deviation() -> None:
    one = make_schedule(4)
    other = with_weights(one, one.weights_SK[:, ::-1])
    mean, deviation_SK = compose.merge([one, other])
    np.testing.assert_allclose(mean.weights_SK, (one.weights_SK + one.weights_SK[:, ::-1]) / 2, rtol=1e-6)
    expected_SK = np.abs(one.weights_SK - one.weights_SK[:, ::-1]) / np.sqrt(2)
    np.testing.assert_allclose(deviation_SK, expected_SK, atol=1e-6)
    assert mean.info["seeds"] == [0, 0]


def test_merge_keeps_the_samples_of_rare_domains() -> None:
    runs = []
    for seed in range(3):
        samples_SK = np.random.default_rng(seed).binomial(1, [0.1, 0.2, 0.9], (300, 3)).astype(np.int32)
        run = make_schedule(300)
        runs.append(replace(run, per_domain=run.per_domain | {"samples": samples_SK}))
    mean, _ = compose.merge(runs)
    totals_K = np.mean([run.per_domain["samples"].sum(axis=0) for run in runs], axis=0)
    np.testing.assert_allclose(mean.per_domain["samples"].sum(axis=0), totals_K, atol=0.5)
    assert (mean.per_domain["samples"] >= 0).all()


def test_merge_aligns_by_progress_and_by_name() -> None:
    short, long = make_schedule(3), make_schedule(6)
    long = with_weights(long, np.repeat(short.weights_SK, 2, axis=0))
    mean, deviation_SK = compose.merge([short, long.in_order_of(long.domains[::-1])])
    np.testing.assert_allclose(mean.weights_SK, short.weights_SK, rtol=1e-6)
    np.testing.assert_allclose(deviation_SK, 0, atol=1e-7)
    with pytest.raises(UsageError, match="only in the schedule a, b, c; only on the other side books, code, web"):
        compose.merge([short, replace(long, domains=["a", "b", "c"])])


def test_composed_schedules_can_be_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    compose.smooth(compose.thin(make_schedule(40), 3), 5).write(path)
    assert Schedule.read(path).info["composed"] == ["means of 3 steps", "moving average of 5 steps"]


def test_warm_up_is_left_out() -> None:
    whole = make_schedule(10)
    phases = [
        {"name": "warm-up", "first_step": 1, "last_step": 4},
        {"name": "learning", "first_step": 5, "last_step": 10},
    ]
    marked = replace(whole, info=whole.info | {"phase": phases})
    assert (whole.warm_up_rows, marked.warm_up_rows) == (0, 4)
    assert whole.learned is whole
    np.testing.assert_array_equal(marked.learned.weights_SK[:4], np.tile(whole.weights_SK[4], (4, 1)))
    np.testing.assert_array_equal(marked.learned.weights_SK[4:], whole.weights_SK[4:])
    np.testing.assert_allclose(compose.average(marked).weights_SK[0], whole.weights_SK[4:].mean(axis=0), rtol=1e-6)
    merged, _ = compose.merge([marked, replace(whole, info=whole.info | {"seed": 5})])
    np.testing.assert_allclose(merged.weights_SK[0], (whole.weights_SK[4] + whole.weights_SK[0]) / 2, rtol=1e-6)
    assert merged.warm_up_rows == 0
    odd: object
    for odd in (None, {}, [], [1], [{"name": "warm-up"}], [{"name": "warm-up", "last_step": -3}], "warm-up"):
        assert replace(whole, info=whole.info | {"phase": odd}).warm_up_rows == 0
    # A run in which nothing was learned yet is shown as it is.
    assert compose.between(marked, 1, 3).learned.weights_SK.shape == (3, 3)


def test_runs_that_are_unlike_are_named() -> None:
    one = make_schedule(10)
    other = replace(one, info=one.info | {"model": "pythia-31m", "seed": 7})
    assert compose.unlike([one, replace(one, info=one.info | {"seed": 7})]) == []
    assert [what for what in compose.unlike([one, other]) if what.startswith("model (")]
