"""Trainers that go on in a new blend at the sample that the run has reached: Megatron-Bridge and GPT-NeoX."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from acodm_cli.errors import UsageError
from acodm_cli.exports import gpt_neox, megatron_bridge
from tests.exports.odd import NAMES, odd_plan, small_plan

BOTH = [megatron_bridge, gpt_neox]


@pytest.mark.parametrize("exporter", BOTH)
def test_a_stage_has_the_counts_of_a_part_of_its_blend(exporter: ModuleType) -> None:
    plan = small_plan([0.5, 0.25, 0.25], [0.75, 0.25, 0.0], steps=1, batch=4)
    # The first four are a, b, c, a (`test_counts`). Of the second blend, a, a, a and b come first:
    # i=0: .75 .25 -> a. i=1: -.25 .25 -> b. i=2: .5 -.5 -> a. i=3: .25 -.25 -> a. i=4: 0 0 -> a. i=5: -.25 .25 -> b. i=6, 7: a, a.
    realised_NK = exporter.realised(exporter.export(plan).files, plan)
    assert realised_NK.tolist() == [[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]]


@pytest.mark.parametrize("exporter", BOTH)
def test_what_a_restart_skips_and_repeats_is_said(exporter: ModuleType) -> None:
    notes = " ".join(exporter.export(small_plan([0.25, 0.75], [0.75, 0.25], steps=100, batch=4)).notes)
    # The run has drawn 100 and 300, and goes on at 300 and 100 of the new blend.
    assert (
        "at iteration 100 skips 200 sequences (most of 'd0': 200) and repeats 200 sequences (most of 'd1': 200)"
        in notes
    )
    assert "skips" not in " ".join(exporter.export(small_plan([0.25, 0.75], steps=100, batch=4)).notes)


def test_files_of_gpt_neox() -> None:
    export = gpt_neox.export(odd_plan())
    assert list(export.files) == [f"stage-from-iteration-{first}.yml" for first in (0, 64, 128)]
    first, second, last = map(yaml.safe_load, export.files.values())
    assert second["train_data_paths"] == [f"data/{name}" for name in NAMES[:8]]
    assert second["train_data_weights"] == [0.05, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05]
    assert [each.get("exit_interval") for each in (first, second, last)] == [64, 128, None]
    # A multiple of the end of a stage is never met before it.
    assert all(first % end for first, end in ((64, 128),))
    for each, end in zip((first, second, last), (64, 128, 192), strict=True):
        assert (each["train_iters"], each["train_batch_size"], each["seq_length"]) == (192, 96, 16)
        assert each["extra_save_iters"] == [end]
        # GPT-NeoX refuses a key that an earlier file has only if it is written in this way.
        assert not any("-" in key for key in each)


def test_gpt_neox_blends_254_datasets_at_most() -> None:
    with pytest.raises(UsageError, match="blends 254 datasets at most, and a stage has 255"):
        gpt_neox.export(small_plan([1 / 255] * 255))


@pytest.mark.parametrize("ranks", [1, 8, 48])
def test_megatron_bridges_own_reader_and_sampler(ranks: int, tmp_path: Path) -> None:
    """The package needs Transformer Engine to be imported, so its sampler and its reader are taken out of their files."""
    helpers = pytest.importorskip("megatron.core.datasets.helpers_cpp", exc_type=ImportError)
    utils = pytest.importorskip("megatron.core.datasets.utils", exc_type=ImportError)
    try:
        found = importlib.util.find_spec("megatron.bridge")
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        pytest.skip("megatron-bridge is not installed")
    folder = Path(found.origin).parent / "data"
    spec = importlib.util.spec_from_file_location("samplers", folder / "samplers.py")
    assert spec is not None
    assert spec.loader is not None
    samplers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(samplers)
    tree = ast.parse((folder / "loaders.py").read_text())
    (reader,) = (node for node in tree.body if getattr(node, "name", "") == "get_blend_and_blend_per_split")
    scope: dict[str, Any] = {"json": json, "Optional": object, "get_blend_from_list": utils.get_blend_from_list}
    code = ast.Module([ast.parse("from __future__ import annotations").body[0], reader], [])
    exec(compile(code, "loaders.py", "exec"), scope)

    plan = odd_plan()
    export = megatron_bridge.export(plan)
    foretold_NK = megatron_bridge.realised(export.files, plan)
    total = plan.target.steps * plan.target.batch
    for stage, text, foretold_K in zip(plan.stages, export.files.values(), foretold_NK, strict=True):
        (tmp_path / "blend.json").write_text(text, encoding="utf-8")
        _, (train, valid, test) = scope["get_blend_and_blend_per_split"](
            per_split_data_args_path=tmp_path / "blend.json"
        )
        assert (valid, test) == (None, None)
        index, sample = np.zeros(total, dtype=np.int16), np.zeros(total, dtype=np.int64)
        weights = utils.normalize(utils.normalize(train[1]))
        helpers.build_blending_indices(index, sample, weights, len(weights), total, False)
        counts_K = np.zeros(len(NAMES))
        for rank in range(ranks):
            batches = iter(
                samplers.MegatronPretrainingSampler(total, stage.first * plan.target.batch, 96 // ranks, rank, ranks)
            )
            for _ in range(stage.steps):
                for place in next(batches):
                    counts_K[NAMES.index(train[0][index[place]].removeprefix("data/"))] += 1
        np.testing.assert_array_equal(counts_K / counts_K.sum(), foretold_K)
