from __future__ import annotations

import ast
import importlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.exports import torchtitan, torchtitan_grain
from acodm_cli.exports.plan import Plan
from tests.exports.odd import NAMES, odd_plan, small_plan


def constants(text: str) -> dict[str, Any]:
    """The literals that the module assigns."""
    assigned = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assigned}


@pytest.mark.parametrize("exporter", [torchtitan, torchtitan_grain])
def test_the_module_holds_every_name_path_and_stage(exporter: ModuleType) -> None:
    plan = odd_plan()
    text = exporter.export(plan).files["acodm_mixture.py"]
    compile(text, "acodm_mixture.py", "exec")
    values = constants(text)
    assert values["SOURCES"] == [(name, f"data/{name}") for name in NAMES]
    assert [end for end, _ in values["STAGES"]] == [64, 128, 192]
    assert (values["STEPS"], values["BATCH"], values["SEQ_LEN"]) == (192, 96, 16)


def test_realised_is_read_from_the_file() -> None:
    plan = small_plan([0.25, 0.75], [0.5, 0.5])
    text = torchtitan.export(plan).files["acodm_mixture.py"].replace("[0.25, 0.75]", "[1, 4]")
    # Of 64 x 96 sequences, 1228.8 and 4915.2.
    assert (torchtitan.realised({"acodm_mixture.py": text}, plan) * 6144).tolist() == [[1229, 4915], [3072, 3072]]


def test_ranks_must_share_a_batch() -> None:
    plan = odd_plan()
    with pytest.raises(UsageError, match="7 data-parallel ranks cannot share a batch of 96"):
        torchtitan.export(replace(plan, target=replace(plan.target, ranks=7)))


def write_texts(plan: Plan, number: int) -> None:
    for index, name in enumerate(plan.domains):
        folder = Path(plan.target.path_of(name))
        folder.mkdir(parents=True)
        lines = [json.dumps({"text": f"{index} {place}"}) for place in range(number)]
        (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")


def import_module(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "acodm_mixture.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "acodm_mixture", raising=False)
    return importlib.import_module("acodm_mixture")


@pytest.mark.parametrize("ranks", [1, 8, pytest.param(48, marks=pytest.mark.slow)])
def test_torchtitans_loader_draws_the_exact_counts_on_all_ranks(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch of every stage, with the loader restored from its own state in the middle of a stage."""
    manager = pytest.importorskip("torchtitan.config.manager")
    pytest.importorskip("torchtitan.components.dataloader")
    registry = pytest.importorskip("torchtitan.models.llama3.config_registry")
    monkeypatch.setattr(registry, "llama3_8b", registry.llama3_debugmodel)
    plan = odd_plan(f"{tmp_path}/{{domain}}")
    plan = replace(plan, target=replace(plan.target, ranks=ranks))
    write_texts(plan, 5000)
    export = torchtitan.export(plan)
    import_module(export.files["acodm_mixture.py"], tmp_path, monkeypatch)
    config = manager.ConfigManager().parse_args(["--module", "acodm_mixture", "--config", "mixture"])
    assert (config.training.steps, config.training.global_batch_size) == (192, 96)

    def loader(rank: int, state: dict[str, Any]) -> Any:
        built = config.dataloader.build(
            dp_world_size=ranks, dp_rank=rank, tokenizer=WordTokenizer(), seq_len=16, local_batch_size=96 // ranks
        )
        built.load_state_dict(state)
        return built

    drawn_TK = np.zeros((192, len(NAMES)), np.int64)
    for rank in range(ranks):
        seen: list[set[int]] = [set() for _ in NAMES]
        state: dict[str, Any] = {}
        for begin, end in ((0, 100), (100, 192)):
            each = loader(rank, state)
            for step, batch in zip(range(begin, end), each, strict=False):
                for index, place in batch[0]["input"][:, :2].tolist():
                    drawn_TK[step, index] += 1
                    assert place not in seen[index] or len(seen[index]) >= 5000 // ranks, (
                        "nothing comes twice in an epoch"
                    )
                    seen[index].add(place)
                if step == end - 1:
                    state = each.state_dict()
                    break
    check_draws(drawn_TK, plan, torchtitan.realised(export.files, plan))


@pytest.mark.parametrize("ranks", [1, 8, 48])
def test_grain_takes_the_mixture_and_its_state(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Grain's own batches, prefetching and states. No release has torchtitan's classes for it, so that others stand in for them
    here: each source is the numbers of its sequences."""
    grain = pytest.importorskip("grain.python")
    experimental = pytest.importorskip("grain.experimental")
    data, texts = ModuleType("torchtitan.components.data"), ModuleType("torchtitan.hf_datasets.text_datasets")

    class Settings:
        Config = SimpleNamespace

    class Packing(SimpleNamespace):
        def build(self, context: Any, dataset_iteration_policy: Any) -> Any:
            assert context.num_tokens_per_batch == 16
            source = NAMES.index(Path(self.dataset.source.path).name)
            numbers = [(source, number) for number in range(dataset_iteration_policy.dp_rank, 5000, ranks)]
            return grain.MapDataset.source(numbers).repeat().to_iter_dataset()

    @dataclass
    class Policy:
        seed: int
        dp_rank: int
        dp_world_size: int

    @dataclass
    class Context:
        num_tokens_per_batch: int

    for name in ("GrainDataLoader", "HuggingFaceRandomAccessSource", "TextCollator"):
        setattr(data, name, Settings)
    data.SingleDatasetConfig, data.ConcatThenSplitPackingConfig = SimpleNamespace, Packing  # type: ignore[attr-defined]
    texts.TextProcessor = Settings  # type: ignore[attr-defined]
    for module in (
        ModuleType("torchtitan"),
        ModuleType("torchtitan.components"),
        data,
        ModuleType("torchtitan.hf_datasets"),
        texts,
    ):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    plan = odd_plan(f"{tmp_path}/{{domain}}")
    plan = replace(plan, domains=[name.replace("/", " ") for name in NAMES])
    monkeypatch.setattr(sys.modules[__name__], "NAMES", plan.domains)
    export = torchtitan_grain.export(plan)
    mixture = import_module(export.files["acodm_mixture.py"], tmp_path, monkeypatch)
    drawn_TK = np.zeros((192, len(NAMES)), np.int64)
    for rank in range(ranks):
        state, places = None, []
        built = mixture.MixtureConfig().build(
            context=Context(16 * 96), dataset_iteration_policy=Policy(42, rank, ranks)
        )
        batches = experimental.ThreadPrefetchIterDataset(
            built.batch(96 // ranks, batch_fn=list), prefetch_buffer_size=2
        )
        for begin, end in ((0, 100), (100, 192)):
            each = iter(batches)
            if state is not None:
                each.set_state(json.loads(json.dumps(state)))
            for step in range(begin, end):
                rows = next(each)
                places += rows
                drawn_TK[step] += np.bincount([source for source, _ in rows], minlength=len(NAMES))
            state = each.get_state()
            each.close()
        for source in range(len(NAMES)):
            numbers = [number for which, number in places if which == source]
            assert (
                numbers == [number % 5000 for number in range(rank, rank + ranks * len(numbers), ranks)]
                or len(numbers) * ranks > 5000
            )
    check_draws(drawn_TK, plan, torchtitan_grain.realised(export.files, plan))


def check_draws(drawn_TK: np.ndarray, plan: Plan, expected_NK: np.ndarray) -> None:
    """Counts of stages are those that were foretold, and each step has its share to within a few sequences."""
    assert (drawn_TK.sum(axis=1) == 96).all()
    for stage, expected_K in zip(plan.stages, expected_NK, strict=True):
        of_stage_TK = drawn_TK[stage.first : stage.first + stage.steps]
        np.testing.assert_array_equal(of_stage_TK.sum(axis=0), np.rint(expected_K * stage.steps * 96))
        assert abs(of_stage_TK - 96 * stage.weights_K).max() < 4


class WordTokenizer:
    """A sequence of 16 tokens that begins with the text's two numbers."""

    def encode(self, text: str, add_bos: bool, add_eos: bool) -> list[int]:
        return [*map(int, text.split()), *[0] * 15]
