from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acodm_cli.exports import torchtitan
from tests.exports.odd import NAMES, odd_plan, small_plan


def constants(text: str) -> dict[str, Any]:
    """The literals that the module assigns."""
    return {
        ast.unparse(statement.targets[0]): ast.literal_eval(statement.value)
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
    }


def test_the_module_holds_every_name_path_and_stage() -> None:
    plan = odd_plan()
    text = torchtitan.export(plan).files["acodm_mixture.py"]
    values = constants(text)
    assert values["SOURCES"] == [(name, f"data/{name}") for name in NAMES]
    assert [end for end, _ in values["STAGES"]] == [64, 128, 192]
    assert (values["STEPS"], values["BATCH"], values["SEQ_LEN"]) == (192, 96, 16)
    functions = [statement.name for statement in ast.parse(text).body if isinstance(statement, ast.FunctionDef)]
    assert functions[-3:] == ["stage_0", "stage_1", "stage_2"]


def test_weights_are_probabilities_after_division_by_their_sum() -> None:
    plan = small_plan([0.25, 0.75], [0.5, 0.5])
    text = torchtitan.export(plan).files["acodm_mixture.py"].replace("[0.25, 0.75]", "[1, 4]")
    assert torchtitan.realised({"acodm_mixture.py": text}, plan).tolist() == [[0.2, 0.8], [0.5, 0.5]]


def test_restarts_are_said() -> None:
    assert any("is a restart" in note for note in torchtitan.export(odd_plan()).notes)
    assert not any("is a restart" in note for note in torchtitan.export(small_plan([0.5, 0.5])).notes)


def test_torchtitan_parses_the_stages_and_goes_on_in_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources are drawn by the weights, and a stage that resumes reads on where the stage before stopped."""
    manager = pytest.importorskip("torchtitan.config.manager")
    registry = pytest.importorskip("torchtitan.models.llama3.config_registry")

    def base() -> Any:
        config = registry.llama3_debugmodel()
        config.checkpoint.last_save_model_only = True
        return config

    monkeypatch.setattr(registry, "llama3_8b", base)
    plan = odd_plan(f"{tmp_path}/{{domain}}")
    for index, name in enumerate(plan.domains):
        folder = Path(plan.target.path_of(name))
        folder.mkdir(parents=True)
        lines = [json.dumps({"text": f"{index} {place}"}) for place in range(5000)]
        (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    module = torchtitan.export(plan)
    (tmp_path / "acodm_mixture.py").write_text(module.files["acodm_mixture.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    expected_NK = torchtitan.realised(module.files, plan)
    state: dict[str, Any] = {}
    next_place = [0] * len(NAMES)
    for number, expected_K in enumerate(expected_NK):
        args = ["--module", "acodm_mixture", "--config", f"stage_{number}"]
        config = manager.ConfigManager().parse_args(args)
        assert config.training.steps == 64 * (number + 1)
        assert config.lr_scheduler.total_steps == 192
        assert config.checkpoint.last_save_model_only is (number == 2)
        loader = config.dataloader.build(
            dp_world_size=1, dp_rank=0, tokenizer=WordTokenizer(), seq_len=16, local_batch_size=96
        )
        loader.load_state_dict(state)
        batches = iter(loader)
        drawn = np.zeros(len(NAMES))
        for _ in range(64):
            for index, place in next(batches)[0]["input"][:, :2].tolist():
                assert place == next_place[index]
                next_place[index] += 1
                drawn[index] += 1
        state = loader.state_dict()
        # Five standard deviations of a share.
        assert (abs(drawn / 6144 - expected_K) <= 5 * np.sqrt(expected_K * (1 - expected_K) / 6144)).all()


class WordTokenizer:
    """A sequence of 16 tokens that begins with the text's two numbers."""

    def encode(self, text: str, add_bos: bool, add_eos: bool) -> list[int]:
        return [*map(int, text.split()), *[0] * 15]
