"""What the README shows is so."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.schedule.schedule import Schedule
from tests.schedule.test_schedule import make_schedule

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text()


def test_the_python_example_trains(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but for a shorter run on a corpus that is there already."""
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert "steps=300))" in code
    exec(code.replace("steps=300))", "steps=3, batch=8, seq_len=32, device='cpu'), corpus=corpus)"), {"corpus": corpus})
    assert len(Schedule.load("out.parquet")) == 3


def test_the_example_of_trainer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but for fewer steps."""
    monkeypatch.chdir(tmp_path)
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Trainer(" in block)
    (tmp_path / "tokens").mkdir()
    for name in ("web", "code"):
        row = json.dumps({"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]})
        (tmp_path / "tokens" / f"{name}.jsonl").write_text(f"{row}\n" * 500)
    schedule = replace(make_schedule(10), domains=["web", "code", "third"])
    weights_S2 = schedule.weights_SK[:, :2] / schedule.weights_SK[:, :2].sum(axis=1, keepdims=True)
    two = {name: values_SK[:, :2] for name, values_SK in schedule.per_domain.items()} | {"weight": weights_S2}
    two["weight"] = two["weight"].astype("float32")
    replace(schedule, domains=["web", "code"], per_domain=two).write(tmp_path / "out.parquet")
    config = transformers.GPTNeoXConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    assert code.count("1000") == 2
    exec(code.replace("1000", "2"), {"model": transformers.GPTNeoXForCausalLM(config)})


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 220
    for file in ("README.md", "tests/benchmarks/README.md", "acodm_cli/README.md", "schedules/README.md"):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (CHECKOUT / file).read_text()):
            assert link.startswith("http") or (CHECKOUT / file).parent.joinpath(link).exists(), (file, link)
