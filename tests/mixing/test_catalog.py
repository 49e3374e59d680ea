from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.mixing.catalog import MIXERS, make_mixer
from acodm_cli.mixing.mixer import Array, Mixer, Task
from acodm_cli.mixing.objective import Objective
from tests.mixing.feedback import observation, random_feedback

TASK = Task(["code", "papers", "web"], np.array([100.0, 300.0, 600.0]), np.full(3, 1 / 3), episodes=8)
TARGETED = replace(TASK, objective=Objective(("x", "y"), (1, 2)), importance=lambda: np.array([0.2, 0.3, 0.5]))
NAMES = [name for name in MIXERS if name not in ("replay", "policy")]


def made(name: str, **options: str) -> Mixer:
    needed = {"fixed": {"weights": "code:1,papers:2,web:1"}, "doremi": {"reference": "some/folder"}}.get(name, {})
    task = TARGETED if name in ("importance", "dga") else TASK
    return make_mixer(name, replace(task, options={**needed, **options}))


def lived(mixer: Mixer, steps: range) -> list[Array]:
    """The weights of some steps of a made-up run that depends on them, in three episodes."""
    weights = []
    for step in steps:
        generator = np.random.default_rng(step)
        weights.append(mixer.weights(observation(step - 1)))
        mixer.learn()
        mixer.observe(random_feedback(generator, step, weights[-1]))
        if step % 20 == 0:
            mixer.end_episode(1 / step, left=60 // step)
    return weights


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_on_the_simplex(name: str) -> None:
    for weights_K in lived(made(name), range(1, 40)):
        assert weights_K.sum() == pytest.approx(1, abs=1e-6)
        assert (weights_K >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_state_continues_exactly(name: str) -> None:
    whole, before = made(name), made(name)
    expected = lived(whole, range(1, 60))
    lived(before, range(1, 30))
    after = made(name)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert np.array_equal(lived(after, range(30, 60)), expected[29:])


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_json(name: str) -> None:
    assert json.loads(json.dumps(made(name).settings())) is not None


def test_fixed_weights_from_text_and_file(tmp_path: Path) -> None:
    expected = [0.25, 0.5, 0.25]
    assert made("fixed").weights(observation()) == pytest.approx(expected)
    (tmp_path / "weights.json").write_text('{"papers": 2, "web": 1, "code": 1}')
    mixer = make_mixer("fixed", replace(TASK, options={"file": str(tmp_path / "weights.json")}))
    assert mixer.weights(observation()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("uniform", {"x": "1"}, "mixer uniform has no option 'x'; it has none"),
        ("odm", {"smooth": "1"}, "known: accumulate, smoothing, warmup_share"),
        ("odm", {"smoothing": "much"}, "is not a number"),
        ("odm", {"smoothing": "2"}, "mixer odm: smoothing = 2.0; give a number from 0 to below 1"),
        ("temperature", {"temperature": "0"}, "temperature = 0.0; give a number above 0"),
        ("fixed", {}, "needs --mixer-option weights=DOMAIN:WEIGHT"),
        ("fixed", {"weights": "code:1,papers:2"}, "differ in web"),
        ("fixed", {"weights": "code:1,papers:2,web:x"}, "'web:x' is not DOMAIN:WEIGHT"),
        ("fixed", {"weights": "code:1,papers:-2,web:1"}, "must be finite, not negative"),
        ("fixed", {"weights": "code:1,papers:2,web:1,code:3"}, "domain code has two weights; give it one"),
        ("fixed", {"file": "/nowhere.json"}, "cannot read /nowhere.json"),
        ("replay", {}, "needs --mixer-option schedule="),
        ("policy", {}, "needs --mixer-option schedule="),
        ("regmix", {}, "there is no mixer regmix; known: ac-odm, natural"),
        ("doremi", {}, "needs --mixer-option reference=FOLDER"),
        ("importance", {}, "needs a target to be like; name one with --target"),
        ("dga", {}, "needs a target: name one with --target, or give --guide domains"),
        ("swarm", {"ridge": "0"}, "mixer swarm: ridge = 0.0; give a number from 1e-06 to 1e+06"),
    ],
)
def test_mistakes_get_one_line(name: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_mixer(name, replace(TASK, options=options))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
