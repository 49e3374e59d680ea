from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from acodm_cli.errors import UsageError
from acodm_cli.exports import mosaicml
from acodm_cli.exports.plan import Plan
from tests.exports.odd import NAMES, odd_plan, small_plan


def config_of(plan: Plan) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(mosaicml.export(plan).files["llm-foundry.yaml"])
    return value


def datasets_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What a stage's StreamingDataset is built of: the callback updates the first stage's with each later one's."""
    first = config["train_loader"]["dataset"]
    return [first, *({**first, **mix["dataset"]} for mix in config["callbacks"]["curriculum_learning"]["schedule"])]


def test_truncated_counts_and_the_rest_by_the_stages_seed() -> None:
    # 10 samples in thirds: 3 each, and one is left.
    plan = small_plan([1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3], steps=1, batch=10)
    counts_NK = mosaicml.realised(mosaicml.export(plan).files, plan) * 10
    for seed, counts_K in zip([9176, 9177], counts_NK, strict=True):
        expected = [3.0, 3.0, 3.0]
        expected[int(np.random.default_rng(seed).choice(3, 1, False)[0])] += 1
        np.testing.assert_allclose(counts_K, expected)


def test_a_weight_below_one_sample_vanishes_and_is_said() -> None:
    # 6144 samples: 0.6 of one is truncated, and the one that is left goes to another stream by this seed.
    plan = odd_plan()
    export = mosaicml.export(plan)
    assert mosaicml.realised(export.files, plan)[0, NAMES.index("tiny")] == 0
    assert "'tiny' rounds to zero in stage 1: nothing is drawn from it there." in export.notes


def test_stages_last_their_tokens() -> None:
    config = config_of(odd_plan())
    callback = config["callbacks"]["curriculum_learning"]
    durations = [callback["duration"], *(mix["duration"] for mix in callback["schedule"])]
    assert durations == [f"{64 * 96 * 16}tok"] * 3
    assert config["max_duration"] == f"{192 * 96 * 16}tok"
    datasets = datasets_of(config)
    assert [dataset["epoch_size"] for dataset in datasets] == [64 * 96] * 3
    assert len({dataset["shuffle_seed"] for dataset in datasets}) == 3


def test_streams_are_the_domains_with_weight() -> None:
    for dataset, names in zip(datasets_of(config_of(odd_plan())), [NAMES[:9], NAMES[:8], NAMES[:9]], strict=True):
        assert {name: stream["local"] for name, stream in dataset["streams"].items()} == {
            name: f"data/{name}" for name in names
        }


def test_one_stage_needs_no_callback() -> None:
    plan = small_plan([0.25, 0.75])
    assert "callbacks" not in config_of(plan)
    np.testing.assert_array_equal(mosaicml.realised(mosaicml.export(plan).files, plan), [[0.25, 0.75]])


def test_remote_streams_have_a_folder_each() -> None:
    streams = config_of(odd_plan("s3://bucket/{domain}"))["train_loader"]["dataset"]["streams"]
    assert streams["Ünïcode/$y"]["remote"] == "s3://bucket/Ünïcode/$y"
    folders = {stream["local"] for stream in streams.values()}
    assert len(folders) == len(streams)
    assert all(folder.count("/") == 1 for folder in folders)


def test_a_file_url_is_no_remote() -> None:
    export = mosaicml.export(odd_plan("file:///data/{domain}"))
    streams = yaml.safe_load(export.files["llm-foundry.yaml"])["train_loader"]["dataset"]["streams"]
    assert streams["Code"] == {"local": "/data/Code", "proportion": 0.1}
    assert not any("Remote" in note for note in export.notes)


def test_a_path_for_all_domains_is_refused() -> None:
    with pytest.raises(UsageError, match=r"put \{domain\} into the path") as error:
        mosaicml.export(odd_plan("data/all"))
    assert "\n" not in str(error.value)


def test_streaming_draws_these_shares(tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    util = pytest.importorskip("streaming.base.util")
    plan = odd_plan(f"{tmp_path}/{{domain}}")
    for index, name in enumerate(plan.domains):
        with streaming.MDSWriter(out=plan.target.path_of(name), columns={"domain": "int"}) as writer:
            for _ in range(700):
                writer.write({"domain": index})
    expected_NK = mosaicml.realised(mosaicml.export(plan).files, plan)
    for expected_K, dataset in zip(expected_NK, datasets_of(config_of(plan)), strict=True):
        util.clean_stale_shared_memory()
        dataset.pop("max_seq_len")
        streams = [streaming.Stream(**stream) for stream in dataset.pop("streams").values()]
        drawn = [sample["domain"] for sample in streaming.StreamingDataset(streams=streams, batch_size=96, **dataset)]
        np.testing.assert_array_equal(np.bincount(drawn, minlength=len(NAMES)) / len(drawn), expected_K)
