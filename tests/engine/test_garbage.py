from __future__ import annotations

import gc
import weakref

import pytest

from acodm_cli.engine.garbage import CollectedBetweenSteps


class Cyclic:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_waits_for_a_validation_or_the_fiftieth_step() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt), CollectedBetweenSteps() as garbage:  # noqa: PT012
        garbage.step_ended(1, validated=True)
        for number, validated, collected in ((2, False, False), (3, True, True), (49, False, False), (50, False, True)):
            left = weakref.ref(Cyclic())
            [[] for _ in range(10_000)]  # more than what a collection waits for, if it may come
            assert left() is not None
            garbage.step_ended(number, validated)
            assert (left() is None) == collected
        raise KeyboardInterrupt
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
