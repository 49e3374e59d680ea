"""What the runs of a study say: how much better a mixture is than a baseline, how sure that is, and what it cost.

Runs are paired by their seeds, which decide the weights of the model and the order of the text, so that most of the noise of a
run is in both and cancels out.

    runs of the mixer and of its baselines, by seed -> objective at each validation -> paired differences at the end
        -> mean ± t · s / sqrt(n), the 95% interval of Student's t over n seeds

Shape letters: R validations of a run; N seeds; K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from acodm_cli.errors import ScheduleError
from acodm_cli.schedule.columns import TARGETS
from acodm_cli.schedule.info import MOST_POINTS, Comparison, Evidence, StudiedCurve
from acodm_cli.schedule.schedule import Schedule

Array = NDArray[np.float64]

# The columns of the file that evidence is made of, besides those of targets.
COLUMNS = ("validation_loss", "objective")
CONFIDENCE = 0.95
# The quantile of the normal distribution that leaves 2.5% above it.
_NORMAL = 1.959963984540054
# From so many degrees of freedom on, an expansion around the normal distribution is right to 7 digits.
_MANY = 100


def student_t(degrees: int) -> float:
    """Returns the t that |T| stays below with a probability of 95%, for Student's T of so many degrees of freedom.

    For few of them by bisection of the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4; for many by their expansion 26.7.5."""
    if degrees >= _MANY:
        z = _NORMAL
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return z + (z**3 + z) / 4 / degrees + second / degrees**2
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Returns the probability that |T| < t."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def mean_and_interval(values_N: Array) -> tuple[float, float | None, float | None]:
    """Returns the mean, the standard deviation (which divides by n - 1), and half of the 95% interval around the mean; of one
    value, None for the last two."""
    mean, number = float(values_N.mean()), len(values_N)
    if number == 1:
        return mean, None, None
    deviation = float(values_N.std(ddof=1))
    return mean, deviation, student_t(number - 1) * deviation / math.sqrt(number)


def seeds_needed(deviation: float, difference: float) -> int:
    """Returns the number of seeds from which on half of the 95% interval is at most as wide as a difference.

    deviation: the standard deviation of paired differences, in the same unit."""
    number = max(2, math.floor((_NORMAL * deviation / difference) ** 2))
    while student_t(number - 1) * deviation / math.sqrt(number) > difference:
        number += 1
    return number


def counted_weights(schedule: Schedule, weights: Mapping[str, float] | None = None) -> Array:
    """Returns how much each domain counts in means over domains. weights: by name; default: 1, and 0 for what is only kept. [K]"""
    kept = schedule.run.kept
    return np.array([(weights or {}).get(name, float(name not in kept)) for name in schedule.domains])


def validations(schedule: Schedule, weights: Mapping[str, float] | None = None) -> tuple[NDArray[np.int64], Array]:
    """Returns the steps of a run's validations, and its objective there: with targets that of the run, in nats; else the mean over
    domains of their perplexities. [R], [R]

    weights: see `counted_weights`.

    Raises:
        ScheduleError: there was no validation.
    """
    if schedule.targets:
        values_S = schedule.per_step["objective"].astype(np.float64)
    else:
        weights_K = counted_weights(schedule, weights)
        counted_K = np.flatnonzero(weights_K)  # a domain that does not count may have no finite loss
        losses_SK = schedule.per_domain["validation_loss"].astype(np.float64)[:, counted_K]
        values_S = np.average(np.exp(losses_SK), axis=1, weights=weights_K[counted_K])
    rows_R = np.flatnonzero(np.isfinite(values_S))
    if not len(rows_R):
        raise ScheduleError("a run of the study has no validation with finite losses, and cannot be compared")
    return schedule.step_S[rows_R], values_S[rows_R]


def kept_losses(schedule: Schedule) -> dict[str, tuple[float, float]]:
    """Returns the held-out losses of what must not be forgotten, before training and at the last validation, in nats. What the
    metadata do not know is left out."""
    found = {}
    for name in schedule.run.kept:
        before, target_S = schedule.run.losses_before.get(name, 0.0), schedule.per_step.get(f"{TARGETS}{name}.loss")
        if target_S is None and name not in schedule.domains:
            continue
        losses_S = (
            schedule.per_domain["validation_loss"][:, schedule.domains.index(name)] if target_S is None else target_S
        )
        known = losses_S[np.isfinite(losses_S)]
        if before > 0 and len(known):
            found[name] = before, float(known[-1])
    return found


def objective_name(schedule: Schedule) -> str:
    """Returns what `validations` gives."""
    return "objective" if schedule.targets else "perplexity"


def share_to_best(
    step_R: NDArray[np.int64], value_R: Array, other_step_R: NDArray[np.int64], other_R: Array
) -> float | None:
    """Returns the steps that a falling curve needs to be as low as the lowest of another, as a share of that one's; None if it never
    is. Between validations, the curve is a line."""
    goal = other_R.min()
    reached = np.flatnonzero(value_R <= goal)
    if not len(reached):
        return None
    at = int(reached[0])
    step = float(step_R[at])
    if at and value_R[at - 1] > value_R[at]:
        step -= (step_R[at] - step_R[at - 1]) * (goal - value_R[at]) / (value_R[at - 1] - value_R[at])
    return float(step / other_step_R[other_R.argmin()])


def compare(
    baseline: str, runs: Sequence[Schedule], others: Sequence[Schedule], weights: Mapping[str, float] | None = None
) -> Comparison:
    """Returns runs against those of a baseline with the same seeds, in the same order. weights: see `validations`."""
    ours, theirs = ([validations(run, weights) for run in each] for each in (runs, others))
    return compare_curves(baseline, ours, theirs)


def compare_curves(
    baseline: str,
    ours: Sequence[tuple[NDArray[np.int64], Array]],
    theirs: Sequence[tuple[NDArray[np.int64], Array]],
) -> Comparison:
    """Returns curves, each the steps and values of a run, against those of a baseline with the same seeds, in the same order."""
    ends_N, other_ends_N = (np.array([value_R[-1] for _, value_R in curves]) for curves in (ours, theirs))
    mean, deviation, interval = mean_and_interval(100 * (ends_N / other_ends_N - 1))
    shares = [share_to_best(*one, *other) for one, other in zip(ours, theirs, strict=True)]
    known = [share for share in shares if share is not None]
    share = float(np.mean(known)) if len(known) == len(shares) else None
    return Comparison(baseline, len(ours), mean, deviation, interval, share)


def is_better(comparison: Comparison) -> bool:
    """Whether the 95% interval of the difference lies below 0, where less is better. One seed cannot show that."""
    return comparison.interval is not None and comparison.difference + comparison.interval < 0


def shows_nothing(comparison: Comparison) -> bool:
    """Whether the interval holds 0, or there is none."""
    return comparison.interval is None or abs(comparison.difference) <= comparison.interval


def unbeaten(mixer: str, against: Sequence[Comparison], curves: Sequence[StudiedCurve]) -> list[str]:
    """Returns the baselines that a mixer was not shown to be better than. It does not have to be, where a baseline forgets more of what
    is to be kept; and it is not, where it forgets more itself."""
    forgotten = {curve.mixer: curve.forgotten for curve in curves}
    more = {each.baseline: forgotten.get(each.baseline, 0) - forgotten.get(mixer, 0) for each in against}
    return [
        each.baseline
        for each in against
        if more[each.baseline] < 0 or (not more[each.baseline] and not is_better(each))
    ]


def evidence_of(
    runs: Mapping[str, Sequence[Schedule]],
    seeds: Sequence[int],
    guarded: bool,
    settings: str,
    weights: Mapping[str, float] | None = None,
) -> Evidence:
    """Returns what a study says of its first mixer. The schedule that it recommends is that mixer's, or if it is guarded and the
    mixer is not better than each baseline, that of the baseline that forgets least, and then has the best objective.

    runs: of each mixer by name, in the order of the seeds; those after the first are baselines. settings: a digest of what the runs
    have in common. weights: see `validations`.

    Raises:
        ScheduleError: a run has no validation.
    """
    mixer, *baselines = runs
    against = tuple(compare(name, runs[mixer], runs[name], weights) for name in baselines)
    curves = tuple(_curve(name, each, weights) for name, each in runs.items())
    best = min(
        curves[1:],
        key=lambda curve: (curve.forgotten, np.mean([values[-1] for values in curve.values])),
        default=curves[0],
    )
    first = runs[mixer][0]
    corpus, tokenizer = (first.info.get(name) for name in ("corpus", "tokenizer"))
    return Evidence(
        objective=objective_name(first),
        mixer=mixer,
        recommended=best.mixer if guarded and unbeaten(mixer, against, curves) else mixer,
        guarded=guarded,
        policy_seed=None,
        seeds=tuple(seeds),
        trained_steps=sum(curve.trained_steps for curve in curves),
        against=against,
        curves=curves,
        corpus=fingerprint(corpus),
        tokenizer=fingerprint(tokenizer),
        settings=settings,
    )


def fingerprint(value: object) -> str:
    """Returns the fingerprint that the metadata give of a corpus or a tokenizer; an empty text if there is none."""
    found = value.get("fingerprint") if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def _curve(name: str, runs: Sequence[Schedule], weights: Mapping[str, float] | None) -> StudiedCurve:
    """Returns the objective of a mixer's runs at the validations of the first; of very many, at some that are evenly spread."""
    step_R = validations(runs[0], weights)[0]
    step_R = step_R[np.unique(np.linspace(0, len(step_R) - 1, min(len(step_R), MOST_POINTS)).round().astype(int))]
    values = tuple(tuple(np.interp(step_R, *validations(run, weights)).tolist()) for run in runs)
    steps = [(run.run.steps or len(run)) * (run.run.episodes.number if run.run.episodes else 1) for run in runs]
    rises = [(last / before - 1, run.run.keep_budget) for run in runs for before, last in kept_losses(run).values()]
    forgotten = sum(budget is not None and rise > budget for rise, budget in rises)
    return StudiedCurve(name, tuple(step_R.tolist()), values, sum(steps), len(rises), forgotten)
