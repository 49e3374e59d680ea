from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from acodm_cli.errors import UsageError
from acodm_cli.exports import maxtext
from tests.exports.odd import NAMES, odd_plan, small_plan


def test_a_file_per_stage_without_zero_weights() -> None:
    export = maxtext.export(odd_plan())
    assert list(export.files) == [f"mixture-from-step-{first}.json" for first in (0, 64, 128)]
    mixtures = [json.loads(text) for text in export.files.values()]
    assert [len(mixture) for mixture in mixtures] == [9, 8, 9]
    assert mixtures[1]["Code"] == {"path": "data/Code", "weight": 0.2}
    notes = " ".join(export.notes)
    assert "mixture-from-step-64.json with steps=128" in notes
    assert "learning_rate_schedule_steps=192" in notes
    assert "'tiny' has weight 0 in stage 2" in notes


def test_realised_counts_what_every_host_draws() -> None:
    # Proportions 100 and 300: of every four elements, the first is d0's.
    plan = small_plan([0.25, 0.75], steps=1, batch=6)
    assert (maxtext.realised(maxtext.export(plan).files, plan) * 6).tolist() == [[2, 4]]
    three = replace(plan, target=replace(plan.target, ranks=3))
    assert (maxtext.realised(maxtext.export(three).files, three) * 6).tolist() == [[3, 3]]
    with pytest.raises(UsageError, match="4 hosts cannot share a batch of 6"):
        maxtext.export(replace(plan, target=replace(plan.target, ranks=4)))


def test_weights_are_truncated_to_hundredths_of_the_least() -> None:
    plan = small_plan([0.3, 0.7], steps=1000)
    # 0.7 is 233.3 hundredths of 0.3.
    assert maxtext.realised(maxtext.export(plan).files, plan)[0, 0] == pytest.approx(100 / 333, abs=1e-5)


@pytest.mark.parametrize("hosts", [1, 8, 48])
def test_grains_own_mixture_draws_what_is_foretold(hosts: int) -> None:
    """As MaxText uses it: mixed by name, with a new mixture in the state of the one before at every stage."""
    grain = pytest.importorskip("grain.python")
    plan = odd_plan()
    plan = replace(plan, target=replace(plan.target, ranks=hosts))
    export = maxtext.export(plan)
    foretold_NK = maxtext.realised(export.files, plan)
    drawn_NK = np.zeros((len(plan.stages), len(NAMES)))
    for host in range(hosts):
        state: Any = None
        for number, text in enumerate(export.files.values()):
            mixture = json.loads(text)
            sources = {
                name: grain.MapDataset.source([(NAMES.index(name), place) for place in range(5000)])
                .repeat()[host::hosts]
                .to_iter_dataset()
                for name in mixture
            }
            total = sum(float(each["weight"]) for each in mixture.values())
            weights = {name: float(each["weight"]) / total for name, each in mixture.items()}
            elements = iter(grain.IterDataset.mix(sources, weights))
            if state is not None:
                elements.set_state(state)
            for _ in range(64 * 96 // hosts):
                drawn_NK[number, next(elements)[0]] += 1
            state = elements.get_state()
    np.testing.assert_allclose(drawn_NK / (64 * 96), foretold_NK, atol=1e-12)
