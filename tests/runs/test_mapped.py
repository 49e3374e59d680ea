"""Runs of a schedule on a corpus of other domains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acodm_cli import RunSettings, Schedule, build_run
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.errors import ScheduleError
from acodm_cli.mixing.mapped import MappedMixer
from acodm_cli.runs.folder import RunFolder

SMALL = RunSettings(
    steps=6, batch=14, seq_len=32, validation_sequences=2, device="cpu", compile="off", checkpoint_every=3
)


def corpus_of(corpus: Corpus, names: str) -> Corpus:
    """The domains of the corpus under other names, in turn."""
    stores = [corpus.domains[index % len(corpus.domains)] for index in range(len(names.split()))]
    return replace(corpus, domains=[replace(s, name=name) for s, name in zip(stores, names.split(), strict=True)])


@pytest.fixture(scope="module")
def learned(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A schedule of five domains, with a policy."""
    run = build_run(SMALL, corpus=corpus_of(corpus, "web code books wiki law"))
    for _ in run.steps():
        pass
    path = tmp_path_factory.mktemp("learned") / "learned.parquet"
    run.schedule().write(path)
    return path


def applied(schedule: Path, mode: str, **given: str) -> RunSettings:
    settings = replace(SMALL, command="apply", schedule=str(schedule), map=given)
    return replace(settings, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["replay", "policy", "online"])
def test_a_schedule_of_five_domains_drives_seven(mode: str, learned: Path, corpus: Corpus, tmp_path: Path) -> None:
    seven = replace(corpus_of(corpus, "law web_b code_b books wiki web_a code_a"), upsampling={"web_b": 3.0})
    settings = applied(learned, mode, web="web_a+web_b", code="code_a+code_b")
    run = build_run(settings, corpus=seven)
    assert run.corpus.names == ["web_a", "web_b", "code_a", "code_b", "books", "wiki", "law"]
    weights_SK = np.array([event.weights_K for event in run.steps()])
    assert np.allclose(weights_SK.sum(axis=1), 1)
    tokens = dict(zip(run.corpus.names, run.corpus.upsampled_tokens_K, strict=True))
    share = tokens["web_a"] / (tokens["web_a"] + tokens["web_b"])
    if mode != "online":  # where each learns for itself
        assert np.allclose(weights_SK[:, 0] / weights_SK[:, :2].sum(axis=1), share)
    if mode == "replay":
        parents_SM = np.add.reduceat(weights_SK, [0, 2, 4, 5, 6], axis=1)
        expected = [Schedule.load(learned).learned.weights(progress=(step + 0.5) / 6) for step in range(6)]
        assert np.allclose(parents_SM, expected, atol=1e-6)
    written = run.schedule()
    assert written.info["map"]["domains"]["web"] == pytest.approx({"web_a": share, "web_b": 1 - share})
    assert written.info["prior"] == pytest.approx(dict(zip(run.corpus.names, run.prior_K, strict=True)))
    assert run.prior_K[:2].sum() == pytest.approx(0.2)
    assert (written.policy is not None) == (mode == "online"), "a learner's policy is for the domains of its own run"
    if written.policy is not None:
        written.write(tmp_path / "a.parquet")
        assert build_run(applied(tmp_path / "a.parquet", "policy"), corpus=seven).mixer.name == "policy"


@pytest.mark.parametrize("mode", ["replay", "policy", "online"])
def test_a_mapped_run_resumes_exactly(mode: str, learned: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Also a replay, whose batches are drawn ahead, and which is the same as without that."""
    other = corpus_of(corpus, "web_a web_b text law new")
    forms = {"web": "web_a+web_b", "books": "text", "wiki": "text", "code": "", "": "new"}
    settings = applied(learned, mode, **forms)
    whole = build_run(settings, corpus=other)
    assert whole.mixer.open_loop == (mode == "replay")
    whole.mixer.open_loop = False
    expected = [event.train_loss for event in whole.steps()]
    folder = RunFolder(tmp_path / "a.parquet")
    with folder.locked():
        run = build_run(settings, corpus=other)
        run.keep_in(folder)
        for event in run.steps():
            if event.step == 4:  # the checkpoint is of step 3
                break
        again = build_run(folder.resumable_settings(), corpus=other)
        again.keep_in(folder, resume=True)
        assert [event.train_loss for event in again.steps()] == expected[3:]
        written = again.finish()
    assert written is not None
    assert np.allclose(written.weights_SK.sum(axis=1), 1)
    assert written.info["map"]["domains"]["code"] == {}
    assert set(written.info["map"]["new"]) == {"new"}


def test_renamed_domains_need_no_map_between(learned: Path, corpus: Corpus) -> None:
    five = corpus_of(corpus, "web code books wiki law")
    settings = applied(learned, "policy", web="code", code="web")
    assert not isinstance(build_run(settings, corpus=five).mixer, MappedMixer)
    with pytest.raises(ScheduleError, match="add with --map =more"):
        build_run(applied(learned, "policy"), corpus=corpus_of(corpus, "web code books wiki law more"))
