from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.exports import olmo_core
from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.stages import Stage

NAMES = ["web pages", 'it\'s "{odd}"', "naïve\\code"]


def make_plan(weights_NK: list[list[float]], steps: int = 10, path: str = "data/{domain}") -> Plan:
    stages = [Stage(number * steps, steps, np.array(weights_K)) for number, weights_K in enumerate(weights_NK)]
    return Plan(NAMES, stages, Target(steps * len(stages), 4, 8, path), "s.parquet")


def constants(plan: Plan) -> dict[str, Any]:
    """What the module assigns before it needs OLMo-core."""
    code = olmo_core.export(plan).files["mixture.py"]
    compile(code, "mixture.py", "exec")
    values: dict[str, Any] = {}
    exec(code[code.index("SEQUENCE_LENGTH =") : code.index("class Window")], values)
    return values


def test_stages_hold_whole_sequences_and_fill_their_batches() -> None:
    values = constants(make_plan([[0.34, 0.33, 0.33], [0.1, 0.0, 0.9]]))
    # 40 sequences: 13.6, 13.2, 13.2, of which the first is the nearest to the next.
    assert values["STAGES"] == [dict(zip(NAMES, [14, 13, 13], strict=True)), {NAMES[0]: 4, NAMES[2]: 36}]
    assert values["SEQUENCE_LENGTH"] == 8
    assert values["GLOBAL_BATCH_SIZE"] == 32
    assert values["PATHS"] == {name: f"data/{name}/*.npy" for name in NAMES}


def test_files_are_taken_as_they_are() -> None:
    values = constants(make_plan([[0.34, 0.33, 0.33]], path="data/{domain}-*.npy"))
    assert list(values["PATHS"].values()) == [f"data/{name}-*.npy" for name in NAMES]


def test_realised_and_notes() -> None:
    plan = make_plan([[0.34, 0.33, 0.33], [1 - 1e-3, 1e-3, 0.0]])
    export = olmo_core.export(plan)
    np.testing.assert_allclose(
        olmo_core.realised(export.files, plan), np.array([[0.35, 0.325, 0.325], [1.0, 0.0, 0.0]])
    )
    notes = " ".join(export.notes)
    assert "0 (sequence 0), 10 (sequence 40)" in notes
    assert "rounds to zero in stage 2" in notes
    assert "has weight 0 in stage 2" in notes


def test_what_olmo_core_cannot_do() -> None:
    with pytest.raises(UsageError, match="counts sequences"):
        olmo_core.export(make_plan([[0.34, 0.33, 0.33]], steps=2**30))
    with pytest.raises(UsageError, match=r"\{domain\}"):
        olmo_core.export(make_plan([[0.34, 0.33, 0.33]], path="data/*.npy"))
    plan = make_plan([[0.5, 0.5]])
    with pytest.raises(UsageError, match=r"expand the \*"):
        olmo_core.export(Plan(["a", "b*"], plan.stages, plan.target, plan.source))


def test_olmo_cores_own_loader_draws_what_is_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("olmo_core.data.composable", exc_type=ImportError)
    olmo_data = pytest.importorskip("olmo_core.data", exc_type=ImportError)
    plan = make_plan([[0.5, 0.25, 0.25], [0.1, 0.0, 0.9], [0.25, 0.5, 0.25]], path=f"{tmp_path}/{{domain}}")
    # Two files per domain; every sequence is its domain's number and its own. The third domain has too few.
    for number, (name, num_sequences) in enumerate(zip(NAMES, [60, 60, 30], strict=True)):
        (tmp_path / name).mkdir()
        tokens = np.repeat(1000 * number + np.arange(num_sequences), plan.target.seq_len).astype(np.uint16)
        for part, values in enumerate(np.split(tokens, 2)):
            values.tofile(tmp_path / name / f"{part}.npy")
    export = olmo_core.export(plan)
    (tmp_path / "mixture.py").write_text(export.files["mixture.py"], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mixture", tmp_path / "mixture.py")
    assert spec is not None
    assert spec.loader is not None
    mixture = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mixture", mixture)
    spec.loader.exec_module(mixture)

    tokenizer = olmo_data.TokenizerConfig(vocab_size=60000, eos_token_id=59999, pad_token_id=59998)
    config = mixture.data_loader(tokenizer, work_dir=str(tmp_path / "work"), display_source_visualization=False)
    loader = config.build(*[source.build(config.work_dir) for source in mixture.dataset(tokenizer)])
    assert loader.total_batches == plan.target.steps
    loader.reshuffle(epoch=1)
    drawn = np.concatenate([batch["input_ids"][:, 0].numpy() for batch in loader]).reshape(len(plan.stages), -1)

    shares_NK = np.stack([np.bincount(row // 1000, minlength=3) / len(row) for row in drawn])
    np.testing.assert_array_equal(shares_NK, olmo_core.realised(export.files, plan))
    np.testing.assert_array_equal(shares_NK, plan.weights_NK)
    # No sequence comes again before its domain is exhausted.
    times = np.unique(drawn, return_counts=True)[1]
    domain = np.unique(drawn) // 1000
    assert times[domain != 2].max() == 1
    assert set(times[domain == 2]) <= {1, 2}
    assert (domain == 2).sum() == 30
