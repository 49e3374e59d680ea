from __future__ import annotations

from pathlib import Path

import pytest

from acodm_cli.runs.folder import RunFolder, is_intact


@pytest.mark.parametrize(("keep", "left"), [(1, [70]), (2, [60, 70]), (4, [50, 60, 70])])
def test_what_was_passed_over_is_not_kept_in_place_of_what_is_whole(keep: int, left: list[int], tmp_path: Path) -> None:
    """The newest is damaged, the run goes on from the one before, and saves at a step before the damaged one's."""
    folder = RunFolder(tmp_path / "a.parquet")
    for step in (50, 60, 80):
        damaged = folder.save_checkpoint(step, {}, 3)
    damaged.write_bytes(b"damaged")
    folder.save_checkpoint(70, {}, keep)
    found = folder.checkpoints()
    assert [int(path.name.split("-")[1]) for path in found] == left
    assert all(map(is_intact, found))
