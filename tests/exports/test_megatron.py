from __future__ import annotations

import json

import numpy as np
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.exports import megatron
from acodm_cli.exports.counts import blend_counts
from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.stages import Stage

NAMES = ["web pages", 'a "quoted" one', "naïve: [code]\\"]


def make_plan(weights_NK: list[list[float]], steps: int = 10, path: str = "data/{domain}/train") -> Plan:
    stages = [Stage(number * steps, steps, np.array(weights_K)) for number, weights_K in enumerate(weights_NK)]
    return Plan(NAMES, stages, Target(steps * len(stages), 4, 128, path), "s.parquet")


def test_blends_alternate_weights_and_prefixes() -> None:
    export = megatron.export(make_plan([[0.5, 0.25, 0.25], [0.1, 0.9, 0.0]]))
    assert list(export.files) == ["blend-from-iteration-0.json", "blend-from-iteration-10.json"]
    blends = [json.loads(text) for text in export.files.values()]
    assert blends[0]["train"] == [
        "0.5",
        f"data/{NAMES[0]}/train",
        "0.25",
        f"data/{NAMES[1]}/train",
        "0.25",
        f"data/{NAMES[2]}/train",
    ]
    # Megatron asserts that weights are positive.
    assert blends[1]["train"] == ["0.1", f"data/{NAMES[0]}/train", "0.9", f"data/{NAMES[1]}/train"]
    # All three keys are looked up.
    assert all(blend["valid"] is None and blend["test"] is None for blend in blends)


def test_notes_say_when_to_restart_and_what_is_left_out() -> None:
    notes = " ".join(megatron.export(make_plan([[0.5, 0.25, 0.25], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]])).notes)
    assert "--phase-transition-iterations 10,20 " in notes
    assert "--train-samples 120 " in notes
    assert "excludes --train-iters, --lr-decay-iters and --lr-warmup-iters" in notes
    assert "--save-interval, which --save needs" in notes
    assert "0, 10, 20 (samples 0, 40, 80)" in notes
    assert "has weight 0 in stage 2, 3" in notes
    assert "restart" not in " ".join(megatron.export(make_plan([[0.5, 0.25, 0.25]])).notes).lower()


def test_realised_counts_whole_samples() -> None:
    plan = make_plan([[0.5, 0.25, 0.25], [0.98, 0.02, 0.0]], steps=1)
    realised_NK = megatron.realised(megatron.export(plan).files, plan)
    # Of the 4 samples of the second stage: .98, -.02 -> a; -.02, .02 -> b; then a is behind by .96 and 1.94 - 2 + 1.
    np.testing.assert_array_equal(realised_NK, [[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]])


def test_the_smallest_weight_is_drawn_once() -> None:
    plan = make_plan([[1 - 1e-9, 1e-9, 0.0]])
    realised_NK = megatron.realised(megatron.export(plan).files, plan)
    np.testing.assert_array_equal(realised_NK, [[39 / 40, 1 / 40, 0]])


@pytest.mark.parametrize(
    ("path", "says"),
    [("data/all", "{domain}"), ("data/{domain}.bin", "adds .bin"), (" {domain}", "strips the spaces")],
)
def test_paths_that_megatron_cannot_take(path: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        megatron.export(make_plan([[0.5, 0.25, 0.25]], path=path))


def test_megatrons_own_parser_reads_the_blend() -> None:
    utils = pytest.importorskip("megatron.core.datasets.utils", exc_type=ImportError)
    plan = make_plan([[0.3, 0.7 - 1e-6, 1e-6]])
    value = json.loads(next(iter(megatron.export(plan).files.values())))
    prefixes, weights = utils.get_blend_from_list(value["train"])
    assert prefixes == [plan.target.path_of(name) for name in NAMES]
    assert weights == [0.3, 0.7 - 1e-6, 1e-6]
    assert utils.get_blend_from_list(value["valid"]) is None


def test_megatrons_own_index_draws_what_is_foretold() -> None:
    helpers = pytest.importorskip("megatron.core.datasets.helpers_cpp", exc_type=ImportError)
    utils = pytest.importorskip("megatron.core.datasets.utils", exc_type=ImportError)
    generator = np.random.default_rng(0)
    for _ in range(20):
        weights_K = generator.dirichlet(np.full(int(generator.integers(1, 25)), 0.5))
        size = int(generator.integers(1, 3000))
        normalised = utils.normalize(utils.normalize(weights_K.tolist()))
        index, sample = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
        helpers.build_blending_indices(index, sample, normalised, len(weights_K), size, False)
        foretold_K = blend_counts([np.array(normalised)], [size])[0]
        np.testing.assert_array_equal(np.bincount(index, minlength=len(weights_K)), foretold_K)
