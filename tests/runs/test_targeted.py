"""Runs with targets: what guides, what is reported, and that training itself is untouched."""

from __future__ import annotations

import hashlib
import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from acodm_cli import RunSettings, Schedule, build_run
from acodm_cli.corpus.corpus import Corpus, open_corpus
from acodm_cli.engine.guide import Guide
from acodm_cli.errors import UsageError
from acodm_cli.mixing.acodm.balance import Balance
from acodm_cli.mixing.baselines.static import uniform_weights
from acodm_cli.mixing.mixer import Array, Mixer, Observation
from acodm_cli.mixing.objective import Objective
from acodm_cli.runs.run import Run
from tests.command_line import acodm
from tests.commands.test_interruption import stop_at_step
from tests.conftest import generate_documents
from tests.runs.test_build import SMALL


def write_target(path: Path, domain: str, count: int = 40) -> Path:
    texts = generate_documents(domain, count, 9)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("targets")
    return str(write_target(folder / "code.jsonl", "code")), str(write_target(folder / "sums.jsonl", "arithmetic"))


class Watched(Mixer):
    """A static mixture that looks at everything that the agent looks at."""

    name = "watched"
    needs_gram = True
    guided = True

    def weights(self, observation: Observation) -> Array:
        return uniform_weights(4)


def finished(settings: RunSettings, corpus: Corpus, mixer: Mixer | None = None) -> Run:
    run = build_run(settings, corpus=corpus, mixer=mixer, warn=lambda _: None)
    for _ in run.steps():
        pass
    return run


def test_guide_passes_do_not_touch_training(corpus: Corpus, targets: tuple[str, str]) -> None:
    """Bit for bit the same weights after 20 steps."""
    plain = finished(replace(SMALL, steps=20), corpus, Watched())
    guided = finished(replace(SMALL, steps=20, target=targets, guide_every=2, guide_sequences=3), corpus, Watched())
    assert guided.trainer.guide is not None
    expected, found = plain.trainer.model_state(), guided.trainer.model_state()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def rows_of(tokens_NU: np.ndarray) -> set[str]:
    return {hashlib.sha256(row.astype(np.int64).tobytes()).hexdigest() for row in np.asarray(tokens_NU)}


def test_no_reported_text_is_a_guide_or_trained_on(corpus: Corpus, targets: tuple[str, str]) -> None:
    """By hashes of every sequence that goes through the model in a run."""
    run = build_run(replace(SMALL, steps=30, target=targets, guide_every=1), corpus=corpus, warn=lambda _: None)
    trainer, seen, guides = run.trainer, set(), set()
    draw_batch, guide = trainer.sampler.draw, trainer.guide
    assert guide is not None
    draw_guide = guide.draw

    def batch_of(weights_K: Array) -> object:
        batch = draw_batch(weights_K)
        seen.update(rows_of(batch.tokens_BU.numpy()))
        return batch

    def guide_of(step: int) -> object:
        found = draw_guide(step)
        assert found is not None
        guides.update(rows_of(found.tokens_RU.numpy()))
        return found

    trainer.sampler.draw, guide.draw = batch_of, guide_of  # type: ignore[assignment, method-assign]
    for _ in run.steps():
        pass
    reported = set().union(*(rows_of(text.tokens_NU) for text in trainer.texts))
    assert len(seen) > 100
    assert len(guides) > 10
    assert not reported & seen
    assert not reported & guides
    assert not guides & seen


def test_the_mixture_turns_to_the_target_and_the_record_says_so(corpus: Corpus, targets: tuple[str, str]) -> None:
    settings = replace(SMALL, steps=60, target=targets[:1], guide_every=2, guide_sequences=4, validation_sequences=8)
    run = finished(settings, corpus)
    schedule = run.schedule()
    assert schedule.weights_SK[-1].argmax() == corpus.names.index("code")
    columns = schedule.per_step
    for name in ("loss", "standard_error", "bits_per_byte", "weight", "guide_loss"):
        assert np.isfinite(columns[f"target.code.{name}"][-1]), name
    assert columns["objective"][-1] == pytest.approx(columns["target.code.loss"][-1])
    text = run.trainer.texts[-1]
    bits = columns["target.code.loss"][-1] * text.counted_NT.sum() / math.log(2) / text.bytes
    assert columns["target.code.bits_per_byte"][-1] == pytest.approx(bits, rel=1e-5)
    info = schedule.info["targets"]["code"]
    assert info["guided"] is True
    assert (info["guide"]["documents"], info["report"]["documents"]) == (20, 20)
    assert info["guide"]["digest"] != info["report"]["digest"]


def test_resumed_runs_are_bit_for_bit(corpus: Corpus, targets: tuple[str, str]) -> None:
    settings = replace(SMALL, target=targets, target_balance="robust", guide_every=3)
    expected = finished(settings, corpus)
    first = build_run(settings, corpus=corpus, warn=lambda _: None)
    steps = first.steps()
    for _ in range(7):
        next(steps)
    again = build_run(settings, corpus=corpus, warn=lambda _: None)
    again.trainer.load_state_dict(first.trainer.state_dict())
    again.recorder.load_state_dict(first.recorder.state_dict())
    for _ in again.steps():
        pass
    a, b = expected.schedule(), again.schedule()
    assert np.array_equal(a.weights_SK, b.weights_SK)
    for name, values in a.per_step.items():
        assert np.array_equal(values, b.per_step[name], equal_nan=True), name


def test_a_target_may_move_but_not_change(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    first = write_target(tmp_path / "code.jsonl", "code")
    how = ["--target", first, "--checkpoint-every", 2, "--steps", 40]
    assert stop_at_step(6, signal.SIGTERM, "proxy-train", *how, "--out", out, *small)[0] == 143
    moved = first.rename(tmp_path / "moved.jsonl")
    changed = write_target(tmp_path / "changed.jsonl", "code", 30)
    for target, code in ((f"code={changed}", 2), (f"other={moved}", 2), (f"code={moved}", 0)):
        outcome = acodm("proxy-train", "--resume", "--out", out, "--target", target)
        assert outcome.code == code, outcome.stderr
        assert code == 0 or "has changed since the run" in outcome.stderr


def test_draws_of_a_guide_are_those_of_the_step(corpus: Corpus, targets: tuple[str, str]) -> None:
    run = build_run(replace(SMALL, target=targets, guide_sequences=3), corpus=corpus, warn=lambda _: None)
    guide = run.trainer.guide
    assert isinstance(guide, Guide)
    first, again = guide.draw(8), guide.draw(8)
    assert first is not None
    assert again is not None
    assert torch.equal(first.tokens_RU, again.tokens_RU)
    assert guide.draw(9) is None
    assert torch.bincount(first.guides_R).tolist() in ([1, 2], [2, 1])
    later = guide.draw(16)
    assert later is not None
    assert torch.bincount(later.guides_R).tolist() == torch.bincount(first.guides_R).tolist()[::-1]


def test_balance_turns_to_the_target_that_improves_least() -> None:
    robust = Balance(Objective(("a", "b", "c"), (1, 1, 2), "robust"))
    fixed = Balance(Objective(("a", "b", "c"), (1, 1, 2)))
    for step in range(100):
        losses_J = np.array([4 - 0.02 * step, 4 - 0.01 * step, 4 - 0.02 * step])
        robust.update(losses_J)
        fixed.update(losses_J)
    assert fixed.weights_J.tolist() == [0.25, 0.25, 0.5]
    assert robust.weights_J[1] > 0.5
    assert robust.weights_J.min() >= 0.1 * 0.25
    assert robust.weights_J.sum() == pytest.approx(1)
    assert robust.weights_J[2] == pytest.approx(2 * robust.weights_J[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-balance", "robust"], "is for targets; name one with --target"),
        (
            ["--mixer", "uniform", "--guide-every", 4, "--target", "TARGET"],
            "--guide-every 4 does nothing with mixer uniform",
        ),
        (["--target", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--mixer", "dga", "--target", "TARGET", "--target-balance", "robust"], "leave out --target-balance"),
        (["--prior", "importance"], "--prior importance is for targets; name one with --target"),
    ],
)
def test_options_that_do_nothing(
    options: list[object], message: str, small: list[object], targets: tuple[str, str], tmp_path: Path
) -> None:
    options = [targets[0] if option == "TARGET" else option for option in options]
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", *options, *small)
    assert outcome.code == 2
    assert message in outcome.stderr


def test_a_static_mixture_reports_targets_too(small: list[object], targets: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    how = ["--mixer", "uniform", "--target", targets[0], "--target", f"maths={targets[1]}"]
    outcome = acodm("proxy-train", "--steps", 4, "--out", out, *how, *small)
    assert outcome.code == 0, outcome.stderr
    schedule = Schedule.read(out)
    assert np.isfinite(schedule.per_step["target.maths.bits_per_byte"][-1])
    assert schedule.info["targets"]["code"]["guided"] is False


def test_held_out_text_of_domains_guides(corpus: Corpus, targets: tuple[str, str]) -> None:
    settings = replace(SMALL, steps=24, target=targets[:1], guide="domains", guide_every=2)
    run = finished(settings, corpus)
    guide = run.trainer.guide
    assert guide is not None
    (text,) = guide.texts
    assert len(text) % 4 == 0
    reported = set().union(*(rows_of(each.tokens_NU) for each in run.trainer.texts))
    assert not rows_of(text.tokens_NU) & reported
    schedule = run.schedule()
    assert schedule.info["targets"]["code"]["guided"] is False
    assert schedule.targets == ["code"]
    assert np.isfinite(schedule.per_domain["reward"][-1]).all()


def test_a_domain_that_is_memorised_loses_its_reward(tokenizer_file: Path, tmp_path: Path) -> None:
    """Two documents again and again have gradients of their own, but these do not help on held-out text of that domain."""
    for domain, seen in (("code", 2), ("prose", 200)):
        (tmp_path / "data" / domain).mkdir(parents=True)
        for split, texts in (
            ("train", generate_documents(domain, seen, 0)),
            ("validation", generate_documents(domain, 60, 1)),
        ):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (tmp_path / "data" / domain / f"{split}.jsonl").write_text(lines)
    small = replace(
        SMALL, data=str(tmp_path / "data"), tokenizer=str(tokenizer_file), cache_dir=str(tmp_path / "cache")
    )
    settings = replace(small, steps=200, batch=16, lr=3e-3, guide="domains", guide_every=1, guide_sequences=8)
    schedule = finished(settings, open_corpus(settings, seq_len=32)).schedule()
    reward_SK = schedule.per_domain["reward"]
    first_K = reward_SK[:10].mean(axis=0)
    assert first_K[0] > first_K[1], "it is easy to learn at first"
    assert reward_SK[-50:, 0].mean() < 0.1 * first_K[0]
    assert schedule.weights_SK[-1, 0] < 0.53


def test_a_domain_whose_loss_counts_more_is_drawn_more(corpus: Corpus) -> None:
    settings = replace(SMALL, steps=60, mixer_options={"objective": "loss"})
    plain, weighted = (
        finished(replace(settings, objective_weights=given), corpus).schedule() for given in (None, {"prose": "8"})
    )
    index = corpus.names.index("prose")
    assert weighted.weights_SK[-1, index] > plain.weights_SK[-1, index] + 0.02
    losses_K = weighted.per_domain["validation_loss"][-1]
    shares_K = np.array([8 if name == "prose" else 1 for name in corpus.names]) / 11
    assert weighted.per_step["objective"][-1] == pytest.approx(losses_K @ shares_K, rel=1e-5)
    with pytest.raises(UsageError, match="there is no such domain; there are arithmetic"):
        build_run(replace(SMALL, objective_weights={"x": "1"}), corpus=corpus)
    with pytest.raises(UsageError, match="so that nothing counts"):
        build_run(replace(SMALL, objective_weights=dict.fromkeys(corpus.names, "0")), corpus=corpus)


def test_an_agent_starts_from_what_is_like_its_targets(
    corpus: Corpus, small: list[object], targets: tuple[str, str], tmp_path: Path
) -> None:
    outcome = acodm("proxy-train", "--steps", 2, "--out", tmp_path / "a.parquet", "--target", targets[0], *small)
    assert outcome.code == 0, outcome.stderr
    assert (
        "prior: importance, the mixture whose bigrams are most like the targets' guide text"
        in outcome.stderr + outcome.stdout
    )
    assert Schedule.read(tmp_path / "a.parquet").info["prior"]["code"] > 0.9

    def prior_of(**changed: object) -> Array:
        settings = replace(SMALL, target=targets, target_weight={"code": "3"}, **changed)  # type: ignore[arg-type]
        return build_run(settings, corpus=corpus, warn=lambda _: None).prior_K

    likely_K = np.full(4, 0.0125) + 0.95 * np.array([0.25, 0.75, 0, 0])
    assert corpus.names[:2] == ["arithmetic", "code"]
    assert prior_of(target_balance="robust") == pytest.approx(likely_K, abs=0.02)
    assert prior_of(mixer="odm", prior="importance") == pytest.approx(likely_K, abs=0.02)
    for uniform in ({"mixer": "odm"}, {"mixer": "dga"}, {"guide": "domains"}, {"prior": "uniform"}):
        assert np.array_equal(prior_of(**uniform), uniform_weights(4)), uniform
    given = replace(corpus, weights={"arithmetic": 1, "code": 1, "prose": 1, "tables": 5})
    of_manifest = build_run(replace(SMALL, target=targets), corpus=given, warn=lambda _: None).prior_K
    assert of_manifest == pytest.approx([0.125, 0.125, 0.125, 0.625])


def test_rivals_that_have_targets(corpus: Corpus, targets: tuple[str, str]) -> None:
    """DGA turns to the target; importance is like it from the start, whatever the manifest says."""
    settings = replace(SMALL, steps=60, target=targets[:1], guide_every=2, guide_sequences=4)
    code = corpus.names.index("code")
    dga = finished(replace(settings, mixer="dga"), corpus).schedule()
    assert dga.weights_SK[0] == pytest.approx(uniform_weights(4))
    assert dga.weights_SK[-1].argmax() == code
    assert dga.info["targets"]["code"]["guided"] is True
    given = replace(corpus, weights=dict.fromkeys(corpus.names, 1.0))
    like = build_run(replace(SMALL, target=targets[:1], mixer="importance"), corpus=given, warn=lambda _: None)
    planned_SK = like.mixer.planned_weights()
    assert planned_SK is not None
    assert planned_SK[0, code] > 0.9
    domains = finished(replace(SMALL, mixer="dga", guide="domains"), corpus)
    assert domains.trainer.guide is not None
