from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acodm_cli import Schedule
from acodm_cli.errors import ScheduleError
from acodm_cli.schedule.library import find_schedule, reference_schedules
from tests.reference_schedules import DESCRIPTIONS, readme

NAMES = list(reference_schedules())


def test_all_that_are_described_are_there() -> None:
    assert set(NAMES) == set(DESCRIPTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_published_ones_over_their_sum(name: str) -> None:
    schedule = Schedule.load(name)
    published_K = np.array([schedule.info["published"][domain] for domain in schedule.domains])
    assert published_K.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(schedule.weights(progress=0.5), published_K / published_K.sum(), rtol=1e-6)
    assert schedule.weights_SK.sum() == pytest.approx(1, abs=1e-6)
    assert schedule.info["source"].startswith("https://github.com/")
    assert set(schedule.info["csv_lines"]) == set(schedule.domains)


def test_the_readme_is_of_these_files() -> None:
    schedules = {name: Schedule.load(name) for name in NAMES}
    lines = (Path(__file__).parents[2] / "schedules" / "README.md").read_text().splitlines()
    assert set(readme(schedules).splitlines()) == set(lines)


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pile-natural").write_bytes(reference_schedules()["pile-regmix-1b"].read_bytes())
    assert find_schedule("pile-natural") == Path("pile-natural")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ScheduleError, match="did you mean pile-doremi-1b"):
        find_schedule("pile-doremi-1B")
    with pytest.raises(ScheduleError, match=r"give a .parquet, .csv or .json file, or one of pile-"):
        find_schedule("nothing/of.this")
