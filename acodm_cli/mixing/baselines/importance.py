"""Importance weights (as DSIR, 2302.03169, but of whole domains): what is most like the targets, the same over a run."""

from __future__ import annotations

from acodm_cli.errors import UsageError
from acodm_cli.mixing.baselines.static import StaticMixer
from acodm_cli.mixing.mixer import Mixer, Task
from acodm_cli.mixing.options import with_options


class ImportanceMixer(StaticMixer):
    """Executes the weights of `--prior importance`, whatever a manifest says."""

    name = "importance"

    @classmethod
    def make(cls, task: Task) -> Mixer:
        with_options(cls.Settings(), task.options, cls.name)
        if task.importance is None:
            raise UsageError("mixer importance needs a target to be like; name one with --target")
        return cls(task.importance())
