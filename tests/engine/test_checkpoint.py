from __future__ import annotations

from pathlib import Path

import pytest

from acodm_cli.engine.checkpoint import checkpoints, is_intact, save_checkpoint


@pytest.mark.parametrize(("keep", "left"), [(1, [70]), (2, [60, 70]), (4, [50, 60, 70])])
def test_what_was_passed_over_is_not_kept_in_place_of_what_is_whole(keep: int, left: list[int], tmp_path: Path) -> None:
    """The newest is damaged, the run goes on from the one before, and saves at a step before the damaged one's."""
    for step in (50, 60, 80):
        damaged = save_checkpoint(tmp_path, step, {}, 3)
    damaged.write_bytes(b"damaged")
    save_checkpoint(tmp_path, 70, {}, keep)
    found = checkpoints(tmp_path)
    assert [int(path.name.split("-")[1]) for path in found] == left
    assert all(map(is_intact, found))
