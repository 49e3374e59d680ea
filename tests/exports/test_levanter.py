from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from acodm_cli.errors import UsageError
from acodm_cli.exports import levanter
from acodm_cli.exports.plan import Target
from tests.exports.odd import NAMES, odd_plan, small_plan


@pytest.mark.parametrize(("batch", "steps"), [(96, 64), (1000, 256), (2048, 1), (4096, 1), (7, 2048)])
def test_stages_begin_where_a_batch_and_a_block_begin(batch: int, steps: int) -> None:
    assert levanter.multiple(Target(10, batch, 16, "")) == steps


def test_a_stage_within_a_block_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at step 60: .* every 64 steps") as error:
        levanter.export(small_plan([0.5, 0.5], [0.2, 0.8], steps=60))
    assert "\n" not in str(error.value)


def test_more_sequences_than_an_index_holds_are_refused() -> None:
    levanter.export(small_plan([0.5, 0.5], steps=2**21, batch=2048))
    with pytest.raises(
        UsageError, match="counts up to 2147483648 sequences of a domain, and the run draws 2147485696 of 'd1'"
    ):
        levanter.export(small_plan([1 - (2**20 + 1) / 2**21, (2**20 + 1) / 2**21], steps=2**21, batch=2048))


def test_weights_are_apportioned_to_whole_sequences() -> None:
    # Wanted are 1024, 1023.18, 0.61 and 0.2 of 2048.
    plan = small_plan([0.5, 0.4996, 0.0003, 0.0001])
    export = levanter.export(plan)
    assert (levanter.realised(export.files, plan) * 2048).tolist() == [[1024, 1023, 1, 0]]
    assert "'d3' rounds to zero in stage 1: nothing is drawn from it there." in export.notes


def test_other_weights_are_read_by_levanters_rule() -> None:
    """Truncation, with the remainder to the first of the largest; a domain without weight in any stage is no candidate."""
    plan = small_plan([0.5, 0.4996, 0.0003, 0.0001])
    data: dict[str, Any] = {"components": dict.fromkeys(plan.domains), "mixture_block_size": 2048}
    cases = [([0.5, 0.4996, 0.0003, 0.0001], [1025, 1023, 0, 0]), ([0.0, 2.0, 2.0, 2.0], [0, 684, 682, 682])]
    for weights, counts in cases:
        data["train_weights"] = [[0, dict(zip(plan.domains, weights, strict=True))]]
        files = {"levanter.yaml": yaml.safe_dump({"data": data})}
        assert (levanter.realised(files, plan) * 2048).tolist() == [counts]


def test_the_file_holds_every_name_path_and_stage() -> None:
    config = yaml.safe_load(levanter.export(odd_plan()).files["levanter.yaml"])
    components = config["data"]["components"]
    assert {name: component["cache_dir"] for name, component in components.items()} == {
        name: f"data/{name}" for name in NAMES
    }
    assert [step for step, _ in config["data"]["train_weights"]] == [0, 64, 128]
    assert all(list(weights) == NAMES and sum(weights.values()) == 1 for _, weights in config["data"]["train_weights"])
    assert config["trainer"] == {"train_batch_size": 96, "num_train_steps": 192}


def test_a_run_that_ends_within_a_block_is_said() -> None:
    assert not any("into a block" in note for note in levanter.export(odd_plan()).notes)
    assert any(
        "ends 512 sequences into a block" in note
        for note in levanter.export(small_plan([0.5, 0.5], steps=10, batch=256)).notes
    )


def test_levanter_parses_the_file_and_deals_these_shares(tmp_path: Path) -> None:
    train_lm = pytest.importorskip("levanter.main.train_lm")
    mixture = pytest.importorskip("levanter.data.mixture")
    dataset = pytest.importorskip("levanter.data.dataset")
    plan = odd_plan()
    files = levanter.export(plan).files
    path = tmp_path / "levanter.yaml"
    path.write_text(files["levanter.yaml"], encoding="utf-8")
    config = pytest.importorskip("draccus").parse(train_lm.TrainLmConfig, config_path=str(path), args=[])
    stages = mixture.rescale_mixture_schedule_for_batch_schedule(
        config.data.train_weights, config.trainer.batch_schedule
    )
    domains = {name: dataset.ListAsyncDataset([index]) for index, name in enumerate(config.data.components)}
    mixed = mixture.MixtureDataset(domains, stages, config.data.mixture_block_size, key=0)
    for number, (first, _) in enumerate(stages):
        drawn = asyncio.run(mixed.get_batch(range(first, first + 64 * 96)))
        shares_K = np.bincount(drawn, minlength=len(NAMES)) / len(drawn)
        np.testing.assert_array_equal(shares_K, levanter.realised(files, plan)[number])
