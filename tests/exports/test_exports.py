from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acodm_cli.exports.catalog import EXPORTS, exporter
from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.stages import find_stages
from acodm_cli.writing import cell
from tests.command_line import acodm
from tests.schedule.test_schedule import make_schedule


def make_plan(name: str, steps: int = 4000, batch: int = 96, stages: int = 3, num_domains: int = 4) -> Plan:
    """Weights that move from one corner towards another, over stages that the trainer can begin."""
    target = Target(steps, batch, 1024, "tokens/{domain}/train")
    towards_S = np.linspace(0, 1, 50)[:, None]
    ends = np.random.default_rng(0).dirichlet(np.full(num_domains, 2.0), 2)
    weights_SK = (1 - towards_S) * ends[0] + towards_S * ends[1]
    found = find_stages(weights_SK, steps, stages, exporter(name).multiple(target))
    domains = ["web pages", "code", "books", *(f"domain-{index}" for index in range(3, num_domains))]
    return Plan(domains, found, target, "test.parquet")


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("num_domains", [4, 22])
def test_what_is_read_back_is_what_was_asked(name: str, num_domains: int) -> None:
    plan = make_plan(name, num_domains=num_domains)
    module = exporter(name)
    realised_NK = module.realised(module.export(plan).files, plan)
    assert realised_NK.shape == plan.weights_NK.shape
    np.testing.assert_allclose(realised_NK.sum(axis=1), 1, atol=1e-6)
    # The coarsest rounding is maxtext's, to hundredths of the least weight; levanter's is of blocks of 2048.
    np.testing.assert_allclose(realised_NK, plan.weights_NK, atol=1e-3)


def test_the_report_is_whole_where_it_is_piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with names that are longer than a terminal is wide; it says for how many ranks it is."""
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "weborganizer_" + "finance_and_business_" * 6 + "high"
    schedule = replace(make_schedule(10), domains=[name, "code", "books"])
    schedule.write(tmp_path / "a.parquet")
    how = [
        "--out",
        tmp_path / "out",
        "--target-steps",
        10,
        "--target-batch",
        96,
        "--target-seq-len",
        32,
        "--target-ranks",
        48,
    ]
    said = acodm("inspect", tmp_path / "a.parquet", "--export", "maxtext", *how).stderr
    assert ", 48 ranks" in said
    assert f"{name} " in said
    assert "…" not in said
    refused = acodm("inspect", tmp_path / "a.parquet", "--export", "torchtitan", *how[:-1], 7)
    assert "7 data-parallel ranks cannot share a batch of 96" in refused.stderr


def test_no_formula_begins_a_cell_and_no_reference_is_written(tmp_path: Path) -> None:
    assert [cell(text) for text in ("=1+2", "+a", "-a", "@a", "a=1")] == ["'=1+2", "'+a", "'-a", "'@a", "a=1"]
    schedule = replace(make_schedule(10), domains=["=cmd", "${oc.env:HOME}", "c"])
    schedule.write(tmp_path / "a.parquet")
    how = ["--out", tmp_path / "out", "--target-steps", 10, "--target-batch", 2048, "--target-seq-len", 32]
    assert acodm("inspect", tmp_path / "a.parquet", "--export", "csv", *how).code == 0
    written = (tmp_path / "out" / "mixture.csv").read_text()
    assert ",'=cmd," in written
    assert "\n=" not in written
    for trainer in ("levanter", "mosaicml", "nanotron"):
        outcome = acodm("inspect", tmp_path / "a.parquet", "--export", trainer, *how)
        assert outcome.code == 2
        assert "would be a reference to another key" in outcome.stderr
    shown = acodm("inspect", tmp_path / "a.parquet", "--csv").stdout
    assert ",'=cmd," in shown
    assert acodm("inspect", tmp_path / "a.parquet", "--stages", 3).code == 2
