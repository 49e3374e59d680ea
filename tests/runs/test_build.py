"""Runs as Python users build them: no console, no files."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acodm_cli import RunSettings, Schedule, build_run
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.trainer import StepEvent
from acodm_cli.errors import Interrupted, ScheduleError, UsageError
from acodm_cli.mixing.baselines.static import uniform_weights
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.run import StopRequest
from tests.conftest import DOMAINS

SMALL = RunSettings(
    steps=12, batch=8, seq_len=32, validation_sequences=2, device="cpu", compile="off", checkpoint_every=5
)


def test_trains_without_files(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = build_run(SMALL, corpus=corpus)
    losses = [event.train_loss for event in run.steps()]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert not list(tmp_path.iterdir())
    schedule = run.schedule()
    assert schedule.policy is not None
    assert schedule.run.mixer == "ac-odm"
    schedule.write(tmp_path / "out.parquet")
    run.save_model(tmp_path / "model")
    assert Schedule.load(tmp_path / "out.parquet").policy == schedule.policy
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_natural_prior_leaves_no_domain_undrawn(corpus: Corpus) -> None:
    """5% of it are uniform; the mixer `natural` draws by tokens alone."""
    tokens_K = corpus.upsampled_tokens_K / corpus.upsampled_tokens_K.sum()
    found = build_run(replace(SMALL, prior="natural"), corpus=corpus)
    np.testing.assert_allclose(found.prior_K, 0.95 * tokens_K + 0.05 / len(tokens_K))
    static = next(build_run(replace(SMALL, mixer="natural"), corpus=corpus).steps())
    np.testing.assert_allclose(static.weights_K, tokens_K)


def test_the_policy_can_be_had_on_the_way(corpus: Corpus) -> None:
    """Freezing the policy changes nothing of what comes after."""
    calm, curious = build_run(SMALL, corpus=corpus), build_run(SMALL, corpus=corpus)
    for expected, found in zip(calm.steps(), curious.steps(), strict=True):
        assert np.array_equal(found.weights_K, expected.weights_K)
        if found.step in (3, 11):
            assert curious.schedule().policy != b""


def test_resumes_from_its_folder(corpus: Corpus, tmp_path: Path) -> None:
    expected = [event.train_loss for event in build_run(SMALL, corpus=corpus).steps()]
    folder = RunFolder(tmp_path / "a.parquet")
    stop = StopRequest(resuming=False)
    with folder.locked():
        run = build_run(SMALL, corpus=corpus)
        run.keep_in(folder, stop)
        steps = run.steps()
        for _ in range(7):
            next(steps)
        stop.signal_number = 15
        with pytest.raises(Interrupted, match="stopped at step 7 of 12, state saved"):
            next(steps)
        again = build_run(SMALL, corpus=corpus)
        again.keep_in(folder, resume=True)
        assert [event.train_loss for event in again.steps()] == expected[7:]
        written = again.finish()
    assert written is not None
    assert len(written) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


class Measuring(Mixer):
    """A mixer of one's own, with numbers of its own: one per step, one per domain, one that comes late."""

    name = "measuring"

    def weights(self, observation: Observation) -> Array:
        return uniform_weights(4)

    def observe(self, feedback: Feedback) -> Report:
        step = feedback.next_observation.step
        metrics: dict[str, float | Array] = {"doubled": 2.0 * step, "share": feedback.samples_K / 8}
        return Report(metrics=metrics | ({"late": 1.0} if step > 3 else {}))


def test_metrics_of_a_mixer_become_columns(corpus: Corpus, tmp_path: Path) -> None:
    run = build_run(replace(SMALL, steps=6), corpus=corpus, mixer=Measuring())
    for _ in run.steps():
        pass
    run.schedule().write(tmp_path / "a.parquet")
    read = Schedule.load(tmp_path / "a.parquet")
    always = {"validation_standard_error": "domain", "validation_bits_per_byte": "domain", "objective": "step"}
    assert read.metrics == {"doubled": "step", "share": "domain", "late": "step"} | always
    assert read.per_step["doubled"].tolist() == [2, 4, 6, 8, 10, 12]
    assert np.isnan(read.per_step["late"]).tolist() == [True, True, True, False, False, False]
    assert np.allclose(read.per_domain["share"].sum(axis=1), 1)
    assert set(Schedule.load(tmp_path / "a.parquet", ["doubled"]).per_step) == {"doubled"}
    resumed = build_run(replace(SMALL, steps=6), corpus=corpus, mixer=Measuring())
    resumed.recorder.load_state_dict(run.recorder.state_dict())
    assert resumed.recorder.schedule({}, None).metrics == read.metrics


@pytest.mark.parametrize(("name", "value"), [("step", 1.0), ("loss", np.ones(4)), ("mine", np.ones(3))])
def test_a_metric_has_its_own_name_and_a_known_shape(name: str, value: float | Array, corpus: Corpus) -> None:
    class Odd(Measuring):
        def observe(self, feedback: Feedback) -> Report:
            return Report(metrics={name: value})

    with pytest.raises(AssertionError, match=f"metric.*'{name}'"):
        next(build_run(SMALL, corpus=corpus, mixer=Odd()).steps())


def test_a_mixer_is_named_when_it_does_what_it_must_not(corpus: Corpus, tmp_path: Path) -> None:
    class Heavy(Measuring):
        def weights(self, observation: Observation) -> Array:
            return np.ones(4)

    with pytest.raises(AssertionError, match="mixer measuring gave weights that are not on the simplex"):
        next(build_run(SMALL, corpus=corpus, mixer=Heavy()).steps())

    class Remembering(Measuring):
        def state_dict(self) -> dict[str, Any]:
            return {"memory": np.ones(4)}

    run = build_run(replace(SMALL, checkpoint_every=1), corpus=corpus, mixer=Remembering())
    with RunFolder(tmp_path / "a.parquet").locked():
        run.keep_in(RunFolder(tmp_path / "a.parquet"))
        steps = run.steps()
        next(steps)
        with pytest.raises(
            AssertionError, match=r"state.trainer.mixer.memory is a ndarray; a state must be of tensors"
        ):
            next(steps)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fsdp_accumulate": "sharded"}, "--fsdp-accumulate sharded does nothing with --parallel ddp; leave it out"),
        ({"mixer": "odm", "agent": "paper"}, "--agent paper does nothing with mixer odm"),
        ({"mixer": "natural", "prior": "natural"}, "--prior natural does nothing with mixer natural"),
        ({"mixer": "odm", "alignment": "exact"}, "--alignment exact does nothing with mixer odm"),
        ({"mixer": "odm", "alignment_size": 32}, "--alignment-size 32 does nothing with mixer odm"),
        ({"command": "apply", "replay_by": "steps"}, "--replay-by steps does nothing with mixer ac-odm"),
        ({"command": "apply", "map": {"a": "b"}}, "--map is for the domains of a schedule"),
        ({"command": "apply", "mode": "replay"}, "--mode replay needs --schedule"),
    ],
)
def test_what_would_do_nothing_is_refused(changes: dict[str, object], says: str, corpus: Corpus) -> None:
    with pytest.raises(UsageError) as caught:
        build_run(replace(SMALL, **changes), corpus=corpus)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_options_of_a_policy_and_a_replay_are_refused_too(proxy: Path, corpus: Corpus) -> None:
    settings = replace(SMALL, command="apply", schedule=str(proxy))
    for changes, says in (
        ({"mode": "replay", "agent": "paper"}, "--agent paper does nothing with mixer replay"),
        ({"mode": "policy", "replay_by": "steps"}, "--replay-by steps does nothing with mixer policy"),
        ({"mode": "policy", "mixer_options": {"gamma": "0"}}, "mixer policy has no option 'gamma'"),
        (
            {"mode": "replay", "mixer_options": {"schedule": "x"}},
            "--mixer-option schedule= does nothing beside --schedule",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            build_run(replace(settings, **changes), corpus=corpus)
        assert says in str(caught.value)


def test_the_mode_follows_the_schedule(proxy: Path, corpus: Corpus) -> None:
    names = []
    learned = Schedule.load(proxy)
    for schedule in (learned, replace(learned, policy=None), None):
        settings = replace(SMALL, command="apply", schedule=str(proxy) if schedule else None)
        names.append(build_run(settings, schedule=schedule, corpus=corpus).mixer.name)
    assert names == ["policy", "replay", "ac-odm"]
    with pytest.raises(ScheduleError, match="holds no policy; use --mode replay"):
        build_run(
            replace(SMALL, command="apply", schedule=str(proxy), mode="policy"),
            schedule=replace(learned, policy=None),
            corpus=corpus,
        )


def test_a_frozen_policy_is_a_mixer_of_proxy_train_too(proxy: Path, corpus: Corpus) -> None:
    run = build_run(replace(SMALL, mixer="policy", mixer_options={"schedule": str(proxy)}), corpus=corpus)
    applied = build_run(replace(SMALL, command="apply", schedule=str(proxy)), corpus=corpus)
    for found, expected in zip(run.steps(), applied.steps(), strict=True):
        assert np.array_equal(found.weights_K, expected.weights_K)
    assert run.inputs["what schedule names"] == applied.inputs["what --schedule names"]


def test_what_should_be_known_is_a_warning(corpus: Corpus) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_run(replace(SMALL, batch=4), corpus=corpus)
    assert "--batch 4 holds fewer than two sequences of most of the 4 domains" in str(caught[-1].message)
    with pytest.raises(UsageError, match="--batch 8 cannot be shared by 3 ranks"):
        build_run(SMALL, corpus=corpus, ranks=Ranks(0, 3))


def test_the_record_says_nothing_of_this_machine(corpus: Corpus) -> None:
    run = build_run(SMALL, corpus=corpus)
    assert run.corpus.names == list(DOMAINS)
    assert "/" not in json.dumps(run.info())
    assert isinstance(next(run.steps()), StepEvent)


def test_settings_are_anchored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "2").touch()
    options = {"weights": ",".join(f"domain{n}=0.01" for n in range(60)), "file": "2", "power": "2"}
    settings = RunSettings(data="corpus/../corpus", tokenizer="org/name", save_model="model", mixer_options=options)
    found = settings.anchored(("file",))
    assert (found.data, found.tokenizer, found.save_model) == (
        str(tmp_path / "corpus"),
        "org/name",
        str(tmp_path / "model"),
    )
    assert found.mixer_options == options | {"file": str(tmp_path / "2")}
    assert found.anchored(("file", "weights")) == found
