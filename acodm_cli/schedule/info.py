"""What a schedule's metadata say of its run, typed and parsed once.

A schedule may come from a stranger: a value that does not have the expected form counts as not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MOST = 2**40
# The phase of a run in which weights are drawn around the prior, to explore.
WARM_UP = "warm-up"
# Of what a study says, so much is read; more counts as not given.
MOST_CURVES, MOST_SEEDS, MOST_POINTS, LONGEST_NAME = 64, 256, 256, 200


@dataclass(frozen=True)
class Score:
    """What a model reached in a task, by one metric. stderr: the standard error, n_shot: the examples in a prompt; None if it is
    not known."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n_shot: int | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run's model. harness: the program that did it. limit: the most samples of each task, None for
    all."""

    harness: str
    limit: int | None
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Episodes:
    """The episodes of a run, of which the schedule holds the best. number: how many there are. best: which it is, from 1. costs: of
    those that are finished, None where it is not known. tokens: what was trained on in all."""

    number: int
    best: int
    costs: tuple[float | None, ...]
    tokens: float | None


@dataclass(frozen=True)
class Comparison:
    """A mixer against a baseline, by the objective at the end of runs of the same seeds. baseline: its name. seeds: how many
    pairs of runs there are. difference: the mean of the differences in percent of the baseline's; less is better. deviation: their
    standard deviation. interval: half of the 95% interval around their mean; both are None of one seed. share_to_best: the steps to
    the baseline's best, as a share of the baseline's own, mean over seeds; None if some run never gets there."""

    baseline: str
    seeds: int
    difference: float
    deviation: float | None
    interval: float | None
    share_to_best: float | None


@dataclass(frozen=True)
class StudiedCurve:
    """The objective at the validations of a mixer's runs. steps: of the validations. values: of each seed at each of them.
    trained_steps: what all its runs took. kept: how many domains and targets these should not forget, over all runs. forgotten: how
    many of them ended above the budget."""

    mixer: str
    steps: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    trained_steps: int
    kept: int = 0
    forgotten: int = 0


@dataclass(frozen=True)
class Evidence:
    """What a study measured of a schedule. objective: by what: perplexity, its mean over domains, or objective, that of the run in
    nats. mixer: the one that was studied. recommended: the one that the schedule is of. guarded: whether it would be a baseline if
    the studied one were not better. policy_seed: the run that the policy is of. seeds: of the runs. trained_steps: of all runs
    together. corpus, tokenizer: fingerprints. settings: a digest of what all runs have in common."""

    objective: str
    mixer: str
    recommended: str
    guarded: bool
    policy_seed: int | None
    seeds: tuple[int, ...]
    trained_steps: int
    against: tuple[Comparison, ...]
    curves: tuple[StudiedCurve, ...]
    corpus: str
    tokenizer: str
    settings: str


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run. Where the metadata do not say, a text is empty, a number is None and a mapping is empty.

    model, command, acodm_version: what made the schedule. parameters: how many the model has. steps: optimiser steps.
    batch: global batch in sequences. seq_len: predicted tokens per sequence. seeds: one of a run, several of a mean
    over runs. prior: weight by domain. tokens, sequences: the size of the corpus, and what the run trained on of it, by domain.
    lr_schedule: what the learning rate did after its warm-up. lr_decay_share: the share of the run in which that of wsd fell.
    for_tokens: the budget of the target that the corpus was cut for. composed: what was done to
    the schedule since, in order. warm_up: the last step in which weights were drawn around the prior, before learning
    began; 0 if there was none. trained: whether the run went on with trained weights. losses_before: the held-out losses of domains and
    targets before it did, in nats. kept: the names of those that must not be forgotten. keep_budget: how far their losses may rise, as
    a share. episodes: None if there is but one, or none is finished. evaluation: what was measured of the trained model. evidence: what
    a study measured. title, paper, source, caveat: what
    published mixtures say of themselves.
    """

    acodm_version: str
    command: str
    model: str
    parameters: float | None
    steps: int | None
    batch: int | None
    seq_len: int | None
    seeds: tuple[int, ...]
    mixer: str
    prior: dict[str, float]
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int | None
    corpus: str
    tokens: dict[str, float]
    sequences: dict[str, float]
    lr_schedule: str
    lr_decay_share: float | None
    for_tokens: float | None
    composed: tuple[str, ...]
    warm_up: int
    trained: bool
    losses_before: dict[str, float]
    kept: tuple[str, ...]
    keep_budget: float | None
    episodes: Episodes | None
    evaluation: Evaluation | None
    evidence: Evidence | None
    title: str
    paper: str
    source: str
    caveat: str

    @classmethod
    def parse(cls, info: dict[str, Any]) -> RunInfo:
        """Returns what the JSON object of the metadata says."""
        mixer, tokenizer, corpus = (_mapping(info.get(name)) for name in ("mixer", "tokenizer", "corpus"))
        composed, seeds = info.get("composed"), info.get("seeds")
        lr_schedule = _mapping(info.get("lr_schedule"))
        started, keep = _mapping(info.get("init_from")), _mapping(info.get("keep"))
        kept = keep.get("names")
        return cls(
            acodm_version=_text(info.get("acodm_version")),
            command=_text(info.get("command")),
            model=_text(info.get("model")),
            parameters=_number(info.get("parameters")),
            steps=_whole(info.get("steps"), 1),
            batch=_whole(info.get("batch"), 1),
            seq_len=_whole(info.get("seq_len"), 1),
            seeds=_seeds(seeds if isinstance(seeds, list) else [info.get("seed")]),
            mixer=_text(mixer.get("name")),
            prior=_numbers(info.get("prior")),
            tokenizer=_text(tokenizer.get("name")),
            tokenizer_fingerprint=_text(tokenizer.get("fingerprint")),
            vocab_size=_whole(tokenizer.get("vocab_size"), 1),
            corpus=_text(corpus.get("name")),
            tokens=_numbers(corpus.get("tokens")),
            sequences=_numbers(corpus.get("sequences")),
            lr_schedule=_text(lr_schedule.get("name")),
            lr_decay_share=_number(lr_schedule.get("decay_share")),
            for_tokens=_number(info.get("for_tokens")),
            composed=tuple(filter(None, map(_text, composed))) if isinstance(composed, list) else (),
            warm_up=_warm_up(info.get("phase")),
            trained=bool(started),
            losses_before=_numbers(started.get("losses")) | _numbers(started.get("target_losses")),
            kept=tuple(filter(None, map(_text, kept))) if isinstance(kept, list) else (),
            keep_budget=_number(keep.get("budget")),
            episodes=_episodes(_mapping(info.get("episodes"))),
            evaluation=_evaluation(_mapping(info.get("evaluation"))),
            evidence=_evidence(_mapping(info.get("evidence"))),
            title=_text(info.get("title")),
            paper=_text(info.get("paper")),
            source=_text(info.get("source")),
            caveat=_text(info.get("caveat")),
        )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = _number(value)
    return "" if number is None else f"{value}"


def _number(value: Any) -> float | None:
    """Returns the value if it is a number that can count or measure something, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e18 < value < 1e18:
        return None
    return float(value)


def _whole(value: Any, least: int) -> int | None:
    return value if type(value) is int and least <= value <= MOST else None


def _numbers(value: Any) -> dict[str, float]:
    """Returns the entries that are finite numbers."""
    numbers = {name: _number(entry) for name, entry in _mapping(value).items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _warm_up(phases: Any) -> int:
    """Returns the last step of the first phase if that is warm-up. phases: objects with name, first_step and last_step."""
    first = _mapping(phases[0]) if isinstance(phases, list) and phases else {}
    return (_whole(first.get("last_step"), 1) or 0) if first.get("name") == WARM_UP else 0


def _episodes(value: dict[str, Any]) -> Episodes | None:
    number, best, costs = _whole(value.get("number"), 2), _whole(value.get("best"), 1), value.get("costs")
    if number is None or best is None:
        return None
    return Episodes(
        number, best, tuple(map(_number, costs)) if isinstance(costs, list) else (), _number(value.get("tokens"))
    )


def _evaluation(value: dict[str, Any]) -> Evaluation | None:
    """Returns what was measured, None if there is no score. results: by task and metric, objects with value and stderr."""
    shots = _mapping(value.get("n_shot"))
    scores = []
    for task, metrics in sorted(_mapping(value.get("results")).items()):
        for metric, known in sorted(_mapping(metrics).items()):
            number = _number(_mapping(known).get("value"))
            if number is not None:
                stderr = _number(_mapping(known).get("stderr"))
                scores.append(Score(task, metric, number, stderr, _whole(shots.get(task), 0)))
    limit = _whole(value.get("limit"), 1)
    return Evaluation(_text(value.get("harness")), limit, tuple(scores)) if scores else None


def _evidence(value: dict[str, Any]) -> Evidence | None:
    """Returns what a study measured, None if it does not say of which mixer, or nothing of it."""
    against, curves, seeds = (value.get(name) for name in ("against", "curves", "seeds"))
    compared = [_comparison(_mapping(entry)) for entry in _list(against, MOST_CURVES)]
    drawn = [_studied(_mapping(entry)) for entry in _list(curves, MOST_CURVES)]
    known = Evidence(
        objective=_name(value.get("objective")),
        mixer=_name(value.get("mixer")),
        recommended=_name(value.get("recommended")),
        guarded=value.get("guarded") is True,
        policy_seed=_whole(value.get("policy_seed"), 0),
        seeds=_seeds(_list(seeds, MOST_SEEDS)),
        trained_steps=_whole(value.get("trained_steps"), 0) or 0,
        against=tuple(entry for entry in compared if entry is not None),
        curves=tuple(entry for entry in drawn if entry is not None),
        corpus=_name(value.get("corpus")),
        tokenizer=_name(value.get("tokenizer")),
        settings=_name(value.get("settings")),
    )
    return known if known.mixer and known.objective and (known.against or known.curves) else None


def _comparison(value: dict[str, Any]) -> Comparison | None:
    baseline, seeds, difference = (
        _name(value.get("baseline")),
        _whole(value.get("seeds"), 1),
        _number(value.get("difference")),
    )
    if not baseline or seeds is None or difference is None:
        return None
    beside = (_least_zero(value.get(name)) for name in ("deviation", "interval", "share_to_best"))
    return Comparison(baseline, seeds, difference, *beside)


def _studied(value: dict[str, Any]) -> StudiedCurve | None:
    """Returns a curve, None unless it has a number for every step and seed, and its steps increase."""
    mixer, steps = _name(value.get("mixer")), [_whole(step, 0) for step in _list(value.get("steps"), MOST_POINTS)]
    rows = [_list(row, MOST_POINTS) for row in _list(value.get("values"), MOST_SEEDS)]
    values = [tuple(number for entry in row if (number := _number(entry)) is not None) for row in rows]
    known = [step for step in steps if step is not None]
    increasing = len(known) == len(steps) and all(before < after for before, after in pairwise(known))
    if not (mixer and steps and values and increasing and all(len(row) == len(steps) for row in values)):
        return None
    counts = (_whole(value.get(name), 0) or 0 for name in ("trained_steps", "kept", "forgotten"))
    return StudiedCurve(mixer, tuple(known), tuple(values), *counts)


def _list(value: Any, most: int) -> list[Any]:
    return value if isinstance(value, list) and len(value) <= most else []


def _name(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= LONGEST_NAME else ""


def _least_zero(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number >= 0 else None


def _seeds(values: list[Any]) -> tuple[int, ...]:
    return tuple(value for value in values if _whole(value, 0) is not None)
