"""acodm: learn pretraining data mixtures on a small model and transfer them to a large one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acodm_cli.adapters import MixedDataset, ScheduleSampler
    from acodm_cli.runs.build import build_run
    from acodm_cli.runs.settings import RunSettings
    from acodm_cli.schedule.schedule import Schedule

__version__ = "0.1.0"
__all__ = ["MixedDataset", "RunSettings", "Schedule", "ScheduleSampler", "__version__", "build_run"]
_HOMES = {
    "RunSettings": "acodm_cli.runs.settings",
    "build_run": "acodm_cli.runs.build",
    "Schedule": "acodm_cli.schedule.schedule",
    "MixedDataset": "acodm_cli.adapters",
    "ScheduleSampler": "acodm_cli.adapters",
}


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: `acodm --help` needs neither torch nor pyarrow.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
