"""What the README shows is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acodm_cli.corpus.corpus import Corpus
from acodm_cli.schedule.schedule import Schedule

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text()


def test_the_python_example_trains(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but for a shorter run on a corpus that is there already."""
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert "steps=300))" in code
    exec(code.replace("steps=300))", "steps=3, batch=8, seq_len=32, device='cpu'), corpus=corpus)"), {"corpus": corpus})
    assert len(Schedule.load("out.parquet")) == 3


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 220
    for file in ("README.md", "tests/benchmarks/README.md", "acodm_cli/README.md", "schedules/README.md"):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (CHECKOUT / file).read_text()):
            assert link.startswith("http") or (CHECKOUT / file).parent.joinpath(link).exists(), (file, link)
