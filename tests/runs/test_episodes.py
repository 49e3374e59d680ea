"""Runs of several episodes: the model starts anew, the mixer goes on, and the best episode is exported."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acodm_cli import RunSettings, Schedule, build_run
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.display.inspect import View, header
from acodm_cli.errors import Interrupted, UsageError
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.baselines.static import StaticMixer
from acodm_cli.mixing.mixer import Array, Observation
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.run import Run, StopRequest
from acodm_cli.schedule.info import RunInfo
from tests.command_line import acodm

SMALL = RunSettings(
    steps=12, episodes=3, batch=8, seq_len=32, validation_sequences=2, device="cpu", compile="off", checkpoint_every=500
)


def built(settings: RunSettings, corpus: Corpus, mixer: StaticMixer | None = None) -> Run:
    return build_run(settings, corpus=corpus, mixer=mixer, warn=lambda _: None)


class Trying(StaticMixer):
    """Executes one mixture after another: bad, good, and the first again."""

    name = "trying"
    depths = (0.0, 1.0)
    mixtures_NK = ((0.0, 0.0, 0.0, 1.0), (0.25, 0.25, 0.25, 0.25), (0.0, 0.0, 0.0, 1.0))

    def __init__(self) -> None:
        super().__init__(np.array(self.mixtures_NK[0]))
        self.told: list[tuple[float, int]] = []
        self.seen: list[Observation] = []

    def weights(self, observation: Observation) -> Array:
        self.seen.append(observation)
        return self.weights_K

    def end_episode(self, cost: float, left: int) -> None:
        self.told.append((cost, left))
        self.weights_K = np.array(self.mixtures_NK[len(self.told)])


def test_the_model_starts_anew_and_the_best_episode_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    mixer = Trying()
    run = built(replace(SMALL, steps=5), corpus, mixer)
    events = list(run.steps())
    assert [event.step for event in events] == [*range(1, 6)] * 3
    assert [event.episode for event in events] == [1] * 5 + [2] * 5 + [3] * 5
    assert [event.run_step for event in events] == [*range(1, 16)]
    # The same mixture gives the same episode, bit for bit.
    for first, third in zip(events[:5], events[10:], strict=True):
        assert (first.train_loss, first.tokens, first.gradient_norm) == (
            third.train_loss,
            third.tokens,
            third.gradient_norm,
        )
    for first_seen, third_seen in zip(mixer.seen[:5], mixer.seen[10:], strict=True):
        for name, value in vars(first_seen).items():
            assert np.array_equal(value, getattr(third_seen, name)), name
    costs = [float(np.mean(event.validation_K)) for event in events if event.step == 5]  # type: ignore[arg-type]
    assert run.costs == pytest.approx(costs)
    assert costs[1] < costs[0] == costs[2]
    assert mixer.told == [(run.costs[0], 2), (run.costs[1], 1)]
    schedule = run.schedule()
    assert np.array_equal(schedule.weights_SK, np.full((5, 4), 0.25))
    assert schedule.info["episodes"] == {"number": 3, "best": 2, "costs": run.costs, "tokens": 15 * 8 * 32}
    assert (schedule.run.steps, len(schedule)) == (5, 5)
    schedule.write(tmp_path / "a.parquet")
    said = header(View("a", Schedule.load(tmp_path / "a.parquet"))).plain
    line = f"episode 2 of 3 was the best: {', '.join(f'{cost:.3f}' for cost in costs)}; 3.84k tokens trained in all"
    assert f"episodes  {line}" in said


@pytest.mark.parametrize(("mixer", "episodes", "stop"), [("ac-odm", 3, 19), ("ac-odm", 2, 12), ("swarm", 4, 31)])
def test_resumes_within_an_episode_and_between_two(
    mixer: str, episodes: int, stop: int, corpus: Corpus, tmp_path: Path
) -> None:
    settings = replace(SMALL, mixer=mixer, episodes=episodes, steps=12 if mixer == "ac-odm" else 8)
    whole = built(settings, corpus)
    expected = [(event.run_step, event.train_loss) for event in whole.steps()]
    folder, request = RunFolder(tmp_path / "a.parquet"), StopRequest(resuming=False)
    with folder.locked():
        run = built(settings, corpus)
        run.keep_in(folder, request)
        steps = run.steps()
        for _ in range(stop):
            next(steps)
        request.signal_number = 15
        with pytest.raises(Interrupted, match=f"stopped at step {stop} of {settings.all_steps}, state saved"):
            next(steps)
        again = built(settings, corpus)
        again.keep_in(folder, resume=True)
        assert [(event.run_step, event.train_loss) for event in again.steps()] == expected[stop:]
        assert again.costs == whole.costs
        assert again.finish() is not None
    whole.schedule().write(tmp_path / "whole.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_the_first_episode_can_be_looked_at_while_it_goes(corpus: Corpus) -> None:
    run = built(replace(SMALL, steps=3, episodes=2, mixer="ac-odm"), corpus)
    steps = run.steps()
    next(steps)
    assert len(run.schedule(with_policy=False)) == 1
    assert run.schedule().run.episodes is None
    for _ in range(3):
        next(steps)
    assert len(run.schedule()) == 3
    assert run.schedule().policy is not None
    assert run.schedule(with_policy=False).policy is None
    mixer = run.mixer
    assert isinstance(mixer, AcOdmLearner)
    assert not mixer.exploring
    assert run.info()["episodes"] == {"number": 2, "best": 1, "costs": run.costs, "tokens": 4 * 8 * 32}


@pytest.mark.parametrize("mixer", ["uniform", "odm", "replay"])
def test_episodes_are_refused_where_they_do_nothing(mixer: str, proxy: Path, corpus: Corpus) -> None:
    options = {"schedule": str(proxy)} if mixer == "replay" else None
    with pytest.raises(UsageError, match=f"--episodes 3 does nothing with mixer {mixer}; leave it out"):
        built(replace(SMALL, mixer=mixer, mixer_options=options), corpus)


def test_checkpoints_are_planned_for_all_episodes() -> None:
    settings = RunSettings(steps=30, episodes=4)
    assert (settings.all_steps, settings.steps_between_checkpoints) == (120, 24)
    with pytest.raises(UsageError, match="--episodes 0; give a whole number from 1 to 1000"):
        RunSettings(episodes=0)


@pytest.mark.parametrize(
    "odd", [7, [], {"number": "3", "best": 1}, {"number": 3}, {"number": 3, "best": -1}, {"number": True, "best": True}]
)
def test_odd_metadata_count_as_not_given(odd: object) -> None:
    assert RunInfo.parse({"episodes": odd}).episodes is None


def test_odd_costs_are_shown_as_unknown(proxy: Path) -> None:
    info = {"episodes": {"number": 30, "best": 2, "costs": [1, "x", None, [2.5], *[2.0] * 26], "tokens": "many"}}
    schedule = replace(Schedule.load(proxy), info=info)
    said = header(View("a", schedule)).plain
    assert "episode 2 of 30 was the best: 1.000, ?, ?, ?, 2.000, 2.000, 2.000, 2.000, 22 more in --json\n" in said


def test_what_is_said_of_episodes(small: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    outcome = acodm("proxy-train", "--steps", 6, "--episodes", 2, "--track", "jsonl", "--out", out, *small)
    assert outcome.code == 0, outcome.stderr
    assert "run: 2 episodes of 6 steps of 8 x 32 = 3.07k tokens" in outcome.stderr
    assert "step 12/12  episode 2/2  loss" in outcome.stderr
    assert " of 2 was the best: " in outcome.stderr
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert lines[-1].startswith('{"step": 12,')
    dry = acodm("proxy-train", "--steps", 3, "--episodes", 5, "--dry-run", *small)
    assert re.search(r" for 15 steps, by the first \d, of which nothing is kept", dry.stderr), dry.stderr
