from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.exports.catalog import EXPORTS, exporter
from acodm_cli.exports.plan import Plan, Target
from acodm_cli.schedule.stages import find_stages


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
    # The coarsest rounding of any trainer here is levanter's, of blocks of 2048.
    np.testing.assert_allclose(realised_NK, plan.weights_NK, atol=1e-3)
