"""What a schedule's metadata say of its run, typed and parsed once.

A schedule may come from a stranger: a value that does not have the expected form counts as not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST = 2**40
# The phase of a run in which weights are drawn around the prior, to explore.
WARM_UP = "warm-up"


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
    a share. episodes: None if there is but one, or none is finished. evaluation: what was measured of the trained model. title, paper, source, caveat: what
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


def _seeds(values: list[Any]) -> tuple[int, ...]:
    return tuple(value for value in values if _whole(value, 0) is not None)
