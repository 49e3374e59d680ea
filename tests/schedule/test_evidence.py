"""What a study says is true as often as it claims, and worth nothing where it was tampered with."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acodm_cli.display.evidence import evidence_lines, needed_lines
from acodm_cli.display.series import series
from acodm_cli.errors import UsageError
from acodm_cli.schedule import evidence as of
from acodm_cli.schedule.info import MOST_POINTS, Evidence, RunInfo
from acodm_cli.schedule.schedule import Schedule
from tests.schedule.test_schedule import make_schedule


def run_with(perplexities: list[float], every: int = 2, seed: int = 0, mixer: str = "ac-odm") -> Schedule:
    """A run with a validation at every `every` steps, and these mean perplexities, which its three domains differ around."""
    schedule = make_schedule(every * len(perplexities))
    losses_SK = np.full((len(schedule), 3), np.nan, dtype=np.float32)
    for row, mean in enumerate(perplexities, 1):
        losses_SK[row * every - 1] = np.log(mean * np.array([0.5, 1.0, 1.5]))
    info = {"seed": seed, "steps": len(schedule), "mixer": {"name": mixer}, "corpus": {"fingerprint": "c"}}
    return replace(schedule, per_domain=schedule.per_domain | {"validation_loss": losses_SK}, info=info)


def study(ours: list[list[float]], **others: list[list[float]]) -> dict[str, list[Schedule]]:
    return {
        name: [run_with(values, seed=seed, mixer=name) for seed, values in enumerate(rows)]
        for name, rows in {"ac-odm": ours, **others}.items()
    }


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # Tables of Student's t, two-sided 95%.
    [
        (1, 12.70620),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (9, 2.26216),
        (30, 2.04227),
        (99, 1.98422),
        (120, 1.97993),
    ],
)
def test_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert of.student_t(degrees) == pytest.approx(quantile, abs=1e-5)


def test_the_interval_covers_the_truth() -> None:
    """Of 200 studies of 5 seeds whose true difference is -4%, about 95% have it in their interval: the number of those that do is
    binomial with a standard deviation of 3.1, and this seed's lies in the middle of that."""
    truth, generator = -4.0, np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        hard_N = generator.normal(100, 10, 5)  # seeds differ much, but alike for both
        ends_N = hard_N * (1 + (truth + generator.normal(0, 0.8, 5)) / 100)
        ours, theirs = ([run_with([200, end]) for end in ends] for ends in (ends_N, hard_N))
        found = of.compare("uniform", ours, theirs)
        assert found.interval is not None
        covered += abs(found.difference - truth) <= found.interval
    assert 186 <= covered <= 194


def test_differences_are_paired_by_hand() -> None:
    """Ends of 90 against 100 and 176 against 200: -10% and -12%."""
    runs = study([[150, 90], [300, 176]], uniform=[[150, 100], [300, 200]])
    found = of.compare("uniform", runs["ac-odm"], runs["uniform"])
    assert (found.seeds, found.difference) == (2, pytest.approx(-11, abs=1e-4))
    assert found.deviation == pytest.approx(math.sqrt(2), rel=1e-4)
    assert found.interval == pytest.approx(12.7062, rel=1e-4)
    # 100 lies at 5/6 of the way from step 2 to step 4, of which the baseline's best is; 200 at 100/124.
    assert found.share_to_best == pytest.approx(((2 + 2 * 50 / 60) / 4 + (2 + 2 * 100 / 124) / 4) / 2, rel=1e-4)
    one = of.compare("uniform", runs["ac-odm"][:1], runs["uniform"][:1])
    assert (one.deviation, one.interval) == (None, None)
    assert of.shows_nothing(one)
    assert of.compare("ac-odm", runs["uniform"], runs["ac-odm"]).share_to_best is None


def test_seeds_needed_are_the_fewest_whose_interval_is_narrow_enough() -> None:
    for deviation in (0.01, 0.3, 0.8, 2.0, 17.0):
        needed = of.seeds_needed(deviation, 1.0)
        halves = [
            of.student_t(number - 1) * deviation / math.sqrt(number) for number in (needed, needed - 1) if number > 1
        ]
        assert halves[0] <= 1
        assert needed == 2 or halves[1] > 1
    assert of.seeds_needed(0.8, 1.0) == 5


def test_it_is_said_in_words_and_drawn() -> None:
    ours = [[150, 96.2], [151, 96.0], [149, 95.8]]
    found = of.evidence_of(
        study(ours, uniform=[[150, 100]] * 3, natural=[[150, 95], [150, 98], [150, 96]]), (0, 1, 2), False, "d"
    )
    lines = evidence_lines(found)
    assert lines[0] == "against uniform, 3 seeds: perplexity -4.0% ± 0.5, its best in 96% of the steps"
    assert lines[1].endswith("no difference that three seeds can show")
    assert lines[2] == "36 steps trained in all, by 3 mixers with 3 seeds"
    assert needed_lines(found)[0].startswith("to see a difference of 1% from uniform, the 3 seeds are enough")
    schedule = replace(run_with([2.0, 1.0]), info={"evidence": json.loads(json.dumps(asdict(found)))})
    assert schedule.run.evidence == found
    drawn = series(schedule, "evidence", 100)
    assert (drawn.names, drawn.step_R.tolist(), drawn.unit) == (["ac-odm", "uniform", "natural"], [2, 4], "perplexity")
    np.testing.assert_allclose(drawn.values_RN, np.array([[150.0, 150, 150], [96, 100, 289 / 3]]), rtol=1e-5)
    with pytest.raises(UsageError, match="no evidence to plot"):
        series(run_with([2.0, 1.0]), "evidence", 100)


def test_long_curves_are_thinned_to_their_ends() -> None:
    values = np.linspace(200, 100, 700).tolist()
    found = of.evidence_of({"ac-odm": [run_with(values, every=1)]}, (0,), False, "")
    (curve,) = found.curves
    assert len(curve.steps) == MOST_POINTS
    assert (curve.steps[0], curve.steps[-1]) == (1, 700)
    assert all(before < after for before, after in pairwise(curve.steps))
    assert curve.values[0][-1] == pytest.approx(100, rel=1e-5)
    drawn = series(
        replace(run_with([2.0, 1.0]), info={"evidence": json.loads(json.dumps(asdict(found)))}), "evidence", 50
    )
    assert 140 <= drawn.step_R[0] < 160, "where the first fifth ends"
    assert drawn.step_R[-1] == 700


def test_targets_are_judged_by_the_objective() -> None:
    run = run_with([3.0, 2.0])
    targets = {
        "target.law.loss": np.full(4, 1.0, np.float32),
        "objective": np.array([np.nan, 5, np.nan, 4], np.float32),
    }
    run = replace(run, per_step=run.per_step | targets, metrics=dict.fromkeys(targets, "step"))
    assert of.objective_name(run) == "objective"
    assert [values.tolist() for values in of.validations(run)] == [[2, 4], [5, 4]]


def test_domains_count_by_their_weights() -> None:
    """What weighs nothing may have no finite loss."""
    run = run_with([4.0, 2.0])
    run.per_domain["validation_loss"][:, 2] = np.nan
    first, _, third = run.domains
    assert of.validations(run, {first: 3, third: 0})[1] == pytest.approx([2.5, 1.25])


@pytest.mark.parametrize(
    ("worst", "recommended"), [(101.0, "ac-odm"), (99.5, "natural")], ids=["better than all", "not than natural"]
)
def test_the_guard_takes_the_best_baseline_unless_all_are_beaten(worst: float, recommended: str) -> None:
    ours = [[150, 96.1], [150, 96.0], [150, 95.9]]
    natural = [[150, 98.0], [150, worst], [150, 96.5]] if worst < 100 else [[150, worst]] * 3
    runs = study(ours, uniform=[[150, 102]] * 3, natural=natural)
    guarded = of.evidence_of(runs, (0, 1, 2), True, "")
    assert guarded.recommended == recommended
    assert f"this is the schedule of {recommended}" in evidence_lines(guarded)[0]
    assert of.evidence_of(runs, (0, 1, 2), False, "").recommended == "ac-odm"
    single = {name: each[:1] for name, each in runs.items()}
    assert of.evidence_of(single, (0,), True, "").recommended != "ac-odm"


def _valid() -> dict[str, Any]:
    found = of.evidence_of(study([[150, 96], [150, 95]], uniform=[[150, 100]] * 2), (0, 1), False, "d")
    value: dict[str, Any] = json.loads(json.dumps(asdict(found)))
    return value


HOSTILE: list[Any] = [
    None, True, -1, "\x1b[2J", 2**70, 1e300, float("nan"), "", "x" * 10**6, [], [[]], {}, {"a": {}}, [None] * 10**4, [[1] * 300] * 300,
]  # fmt: skip


def test_hostile_values_count_as_not_given(tmp_path: Path) -> None:
    valid = _valid()
    places = [(valid, name) for name in valid]
    places += [(part, name) for list_name in ("against", "curves") for part in valid[list_name][:1] for name in part]
    run = run_with([2.0, 1.0])
    for place, name in places:
        kept = place[name]
        for value in HOSTILE:
            place[name] = value
            found = RunInfo.parse({"evidence": valid}).evidence
            assert found is None or isinstance(found, Evidence)
            assert all("x" * 1000 not in line for line in evidence_lines(found))
            schedule = replace(run, info={"evidence": valid, "batch": 2**40, "seq_len": 2**40})
            if found is not None and found.curves:
                drawn = series(schedule, "evidence", 50)
                assert np.isfinite(drawn.values_RN).any()
                assert all(each.isprintable() for each in drawn.names)
        place[name] = kept
    for value in HOSTILE:
        assert RunInfo.parse({"evidence": value}).evidence is None
    # A file with such a block is read all the same.
    path = tmp_path / "odd.parquet"
    replace(make_schedule(), info={"evidence": {"mixer": 5, "curves": [{"values": [[None]]}]}}).write(path)
    assert Schedule.read(path).run.evidence is None


def keeping(ends: list[list[float]], kept_end: float, mixer: str) -> list[Schedule]:
    """Runs that must keep the last of their three domains, whose loss was 2 nats before, within 2%."""
    runs = []
    for seed, values in enumerate(ends):
        run = run_with(values, seed=seed, mixer=mixer)
        run.per_domain["validation_loss"][-1, 2] = kept_end
        kept = {"init_from": {"losses": {run.domains[2]: 2.0}}, "keep": {"names": [run.domains[2]], "budget": 0.02}}
        runs.append(replace(run, info=run.info | kept))
    return runs


def test_what_is_kept_does_not_count_but_must_not_be_forgotten() -> None:
    ours = keeping([[150, 90], [151, 91]], 2.03, "ac-odm")
    assert of.validations(ours[0])[1] == pytest.approx([150 * 0.75, 90 * 0.75], rel=1e-5), "the mean of the other two"
    assert of.kept_losses(ours[0]) == {ours[0].domains[2]: (2.0, pytest.approx(2.03))}
    runs = {
        "ac-odm": ours,
        "greedy": keeping([[150, 70], [151, 71]], 2.05, "greedy"),
        "uniform": keeping([[150, 100], [151, 101]], 1.9, "uniform"),
    }
    found = of.evidence_of(runs, (0, 1), True, "d")
    assert found.recommended == "ac-odm", "what is better because it forgets need not be beaten"
    assert evidence_lines(found)[0].endswith("better than every baseline that forgets no more")
    assert "above the budget of what is kept, over all seeds: ac-odm 0 of 2, greedy 2 of 2, uniform 0 of 2" in (
        evidence_lines(found)
    )
    schedule = replace(ours[0], info={"evidence": json.loads(json.dumps(asdict(found)))})
    assert schedule.run.evidence == found
    forgetful = of.evidence_of(runs | {"ac-odm": keeping([[150, 60], [151, 61]], 2.1, "ac-odm")}, (0, 1), True, "d")
    assert forgetful.recommended == "uniform", "the mixer forgets more than it"
    assert of.unbeaten(forgetful.mixer, forgetful.against, forgetful.curves) == ["uniform"]


def test_a_kept_target_has_losses_too() -> None:
    run = run_with([3.0, 2.0])
    losses = {"target.law.loss": np.array([np.nan, 1.5, np.nan, 1.6], np.float32)}
    info = {
        "init_from": {"losses": {}, "target_losses": {"law": 1.25}},
        "keep": {"names": ["law", "gone"], "budget": 0.02},
    }
    run = replace(run, per_step=run.per_step | losses, metrics=dict.fromkeys(losses, "step"), info=info)
    assert of.kept_losses(run) == {"law": (1.25, pytest.approx(1.6))}
