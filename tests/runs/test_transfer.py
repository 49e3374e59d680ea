"""What is said of runs that are unlike the one in which their schedule was learned, and of a corpus that is cut for a target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acodm_cli import RunSettings, Schedule, build_run
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.errors import Interrupted
from acodm_cli.mixing.settings import ApplyMode
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.run import StopRequest
from tests.conftest import DOMAINS

SMALL = RunSettings(steps=12, batch=8, seq_len=32, validation_sequences=2, device="cpu", compile="off")
TOKENS = 12 * 8 * 32


def said_of(settings: RunSettings, corpus: Corpus, schedule: Schedule | None = None) -> list[str]:
    said: list[str] = []
    build_run(settings, schedule=schedule, corpus=corpus, warn=said.append)
    return said


def static(sequences: dict[str, int], samples: int, **info: Any) -> Schedule:
    """A schedule of one row with equal weights, for which `samples` sequences of each domain were drawn."""
    ones_1K, names = np.ones((1, 4), dtype=np.float32), list(DOMAINS)
    return Schedule(
        domains=names,
        step_S=np.array([12]),
        tokens_S=np.array([TOKENS]),
        per_domain={"weight": ones_1K / 4, "samples": (samples * ones_1K).astype(np.int32)},
        per_step={},
        info={"corpus": {"sequences": dict.fromkeys(names, 10**6) | sequences}, **info},
    )


@pytest.mark.parametrize("mode", ["policy", "online", "replay"])
def test_another_schedule_of_the_learning_rate_is_warned_of(mode: ApplyMode, proxy: Path, corpus: Corpus) -> None:
    settings = replace(SMALL, command="apply", schedule=str(proxy), mode=mode)
    schedule = Schedule.load(proxy)
    assert schedule.run.lr_schedule == "cosine"
    assert not said_of(settings, corpus, schedule)
    (said,) = said_of(replace(settings, lr_schedule="wsd"), corpus, schedule)
    assert said == (
        "the schedule was learned while the learning rate followed cosine, and in this run it follows wsd (a decay over 0.2 of the run); "
        "losses fall at other times than it was learned with"
    )
    for odd in ("cosine", {"name": "\x1b[2J"}, None):  # not what acodm writes
        unknown = replace(schedule, info=schedule.info | {"lr_schedule": odd})
        assert not said_of(replace(settings, lr_schedule="wsd"), corpus, unknown)


def test_the_domain_whose_epochs_differ_most_is_named(corpus: Corpus) -> None:
    settings = replace(SMALL, command="apply", mode="replay")
    sizes = dict(zip(corpus.names, corpus.num_sequences(32).tolist(), strict=True))
    # The run draws 24 sequences of each domain per 12 steps: enough steps make that 4 epochs of code, more or less of others.
    steps = 12 * 4 * sizes["code"] // 24
    long = replace(settings, steps=steps)
    (said,) = said_of(long, corpus, static({"code": 600}, samples=600))
    here = steps * 2 / min(sizes.values())
    name = min(sizes, key=lambda name: sizes[name])
    if name != "code":  # it was drawn 600 of a million times where the schedule was learned
        assert said.startswith(f"domain {name} will be seen {here:.3g} times, and was seen 0.0006 times")
    assert said.endswith(f"; learn one with proxy-train --for-tokens {steps * 8 * 32}")
    same = {name: round(600 * size / (steps * 2)) for name, size in sizes.items()}
    assert not said_of(long, corpus, static(same, samples=600)), "as often as it was learned with"
    assert not said_of(settings, corpus, static({}, samples=600)), "seen less than once in both runs"
    (said,) = said_of(settings, corpus, static({"tables": 100}, samples=600))
    assert said.startswith("domain tables will be seen 0.")
    assert said.endswith("and was seen 6 times where the schedule was learned"), "nothing else can be done about it"
    (said,) = said_of(settings, corpus, static({"tables": 100}, samples=600, for_tokens=3e11))
    assert said.endswith("; it was learned for 3e+11 tokens, and this run has 3.07e+03")


def test_what_is_cut_is_said_and_recorded(corpus: Corpus) -> None:
    whole = corpus.num_sequences(32)
    cut = replace(SMALL, for_tokens=10 * TOKENS)
    assert not said_of(cut, corpus)
    run = build_run(cut, corpus=corpus)
    assert list(run.info()["corpus"]["sequences"].values()) == np.rint(whole / 10).tolist()
    assert run.info()["for_tokens"] == 10 * TOKENS
    list(run.steps())
    epochs_K = run.schedule().epochs()
    assert epochs_K is not None
    drawn_K = run.schedule().per_domain["samples"].sum(axis=0)
    assert epochs_K == pytest.approx(drawn_K * 10 / whole, rel=0.1), "those of the target's ten times as many sequences"
    assert all(len(text) == 2 for text in run.trainer.texts), "validation text is not cut"
    (said,) = said_of(replace(SMALL, for_tokens=10_000 * TOKENS), corpus)
    assert said.startswith(
        "--for-tokens leaves few sequences of arithmetic 1, code 1, prose 1, tables 1: what is learned"
    )
    (said,) = said_of(replace(SMALL, for_tokens=TOKENS), corpus)
    assert (
        said
        == f"--for-tokens {TOKENS} is not more than the {TOKENS} tokens of this run, so nothing of the corpus is cut"
    )


@pytest.mark.parametrize("stop_at", [8, 10])
def test_resumes_before_and_within_the_decay(stop_at: int, corpus: Corpus, tmp_path: Path) -> None:
    """Steps 10, 11 and 12 are the decay; the corpus is cut, too."""
    settings = replace(SMALL, lr_schedule="wsd", lr_decay_share=0.25, for_tokens=20 * TOKENS)
    expected = [(event.train_loss, event.learning_rate) for event in build_run(settings, corpus=corpus).steps()]
    rates = [rate for _, rate in expected]
    assert rates[0] == rates[9] > rates[10] > rates[11]
    folder, stop = RunFolder(tmp_path / "a.parquet"), StopRequest(resuming=False)
    with folder.locked():
        run = build_run(settings, corpus=corpus)
        run.keep_in(folder, stop)
        steps = run.steps()
        for _ in range(stop_at):
            next(steps)
        stop.signal_number = 15
        with pytest.raises(Interrupted):
            next(steps)
        again = build_run(settings, corpus=corpus)
        again.keep_in(folder, resume=True)
        assert [(event.train_loss, event.learning_rate) for event in again.steps()] == expected[stop_at:]
