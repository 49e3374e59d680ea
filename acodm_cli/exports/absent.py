"""The notes on domains that a trainer's rounding leaves out."""

from __future__ import annotations

from acodm_cli.exports.plan import Array, Plan


def absent(realised_NK: Array, plan: Plan) -> list[str]:
    """A sentence on every domain that is asked for in stages in which the trainer draws nothing of it."""
    notes = []
    lost_KN = ((realised_NK == 0) & (plan.weights_NK > 0)).T
    for name, lost_N in zip(plan.domains, lost_KN, strict=True):
        stages = lost_N.nonzero()[0].tolist()
        if len(stages) == len(plan.stages):
            notes.append(f"{name!r} gets nothing in the whole run: its weight rounds to zero.")
        elif stages:
            numbers = ", ".join(map(str, stages))
            notes.append(f"{name!r} gets nothing in stage {numbers} (counted from 0): its weight rounds to zero there.")
    return notes
