from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from acodm_cli.errors import UsageError
from acodm_cli.exports import nanotron
from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.stages import Stage

NAMES = ["web pages: 'all'", "yes", "naïve # code"]


def make_plan(weights_NK: list[list[float]], steps: int = 10, path: str = "s3://data/{domain}") -> Plan:
    stages = [Stage(number * steps, steps, np.array(weights_K)) for number, weights_K in enumerate(weights_NK)]
    return Plan(NAMES, stages, Target(steps * len(stages), 4, 128, path), "s.parquet")


def test_every_file_ends_in_its_own_stage() -> None:
    plan = make_plan([[0.5, 0.25, 0.25], [0.1, 0.0, 0.9]])
    files = nanotron.export(plan).files
    assert list(files) == ["data-stages-1.yaml", "data-stages-2.yaml"]
    first, second = (yaml.safe_load(text) for text in files.values())
    assert first["tokens"] == {"sequence_length": 128, "train_steps": 10}
    assert second["tokens"] == {"sequence_length": 128, "train_steps": 20}
    assert second["data_stages"][:1] == first["data_stages"]
    # Steps count from 1, and a stage begins right after the last step of the one before.
    assert [stage["start_training_step"] for stage in second["data_stages"]] == [1, 11]
    assert len({stage["name"] for stage in second["data_stages"]}) == 2
    assert second["data_stages"][1]["data"]["dataset"] == {
        "dataset_folder": [f"s3://data/{NAMES[0]}", f"s3://data/{NAMES[2]}"],
        "dataset_weights": [0.1, 0.9],
        **nanotron.PLACEHOLDERS,
    }


def test_names_sort_by_stage() -> None:
    files = list(nanotron.export(make_plan([[0.5, 0.25, 0.25]] * 12)).files)
    assert files == sorted(files)


def test_notes() -> None:
    notes = " ".join(nanotron.export(make_plan([[0.5, 0.25, 0.25], [0.1, 0.0, 0.9]])).notes)
    assert "start at step 1 (sample 0), 11 (sample 40)" in notes
    assert "'yes' has weight 0 in stage 2" in notes
    assert "needs a datatrove that is not released" in notes
    assert "Set tokenizer_name, vocab_size and token_size_in_bytes" in notes
    assert "s3" not in notes
    local = nanotron.export(make_plan([[0.5, 0.25, 0.25]], path="data/{domain}")).notes
    assert "s3" in local[-1]
    assert "needs datatrove's .metadata file" in " ".join(local)


def test_remote_folders_have_placeholders_that_stop_a_run() -> None:
    for path, number in (("s3://data/{domain}", 5), ("data/{domain}", 2)):
        (text,) = nanotron.export(make_plan([[0.5, 0.25, 0.25]], path=path)).files.values()
        dataset = yaml.safe_load(text)["data_stages"][0]["data"]["dataset"]
        assert len(dataset) == number
        assert dataset.get("vocab_size", 0) == 0


def test_the_step_at_which_a_folder_runs_out_is_said() -> None:
    # Two sequences of 'yes' a step, of 129 tokens each: 25 last for 12 steps.
    plan = replace(make_plan([[0.25, 0.5, 0.25]] * 2), tokens={"yes": 25 * 129, NAMES[0]: 1e9})
    notes = " ".join(nanotron.export(plan).notes)
    assert "'yes' runs out at about step 13 " in notes
    assert "IndexError" in notes
    assert "40 of 'yes' and so on" in " ".join(nanotron.export(replace(plan, tokens={})).notes)


def test_realised_counts_whole_samples() -> None:
    plan = make_plan([[0.5, 0.25, 0.25], [0.98, 0.02, 0.0]], steps=1)
    realised_NK = nanotron.realised(nanotron.export(plan).files, plan)
    np.testing.assert_array_equal(realised_NK, [[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]])


def test_patterns_and_shared_folders_are_refused() -> None:
    with pytest.raises(UsageError, match="would expand"):
        nanotron.export(make_plan([[0.5, 0.25, 0.25]], path="data/{domain}[0]"))
    with pytest.raises(UsageError, match=r"\{domain\}"):
        nanotron.export(make_plan([[0.5, 0.25, 0.25]], path="data"))


def test_nanotrons_own_config_takes_the_stages() -> None:
    config = pytest.importorskip("nanotron.config", exc_type=ImportError)
    dacite = pytest.importorskip("dacite")
    if not hasattr(config, "NanosetDatasetsArgs"):
        pytest.skip("this release of nanotron has no data_stages")
    plan = make_plan([[0.5, 0.25, 0.25], [0.1, 0.0, 0.9]])
    for text in nanotron.export(plan).files.values():
        for value in yaml.safe_load(text)["data_stages"]:
            stage = dacite.from_dict(config.DatasetStageArgs, value, dacite.Config(strict=True))
            assert isinstance(stage.data.dataset, config.NanosetDatasetsArgs)
            assert stage.data.dataset.dataset_weights == value["data"]["dataset"]["dataset_weights"]
