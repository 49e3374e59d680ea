"""acodm: learn pretraining data mixtures on a small model and transfer them to a large one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acodm_cli.schedule.schedule import Schedule

__version__ = "0.1.0"
__all__ = ["Schedule", "__version__"]


def __getattr__(name: str) -> Any:
    # Schedule is imported when it is asked for: `acodm --help` needs neither numpy nor pyarrow.
    if name == "Schedule":
        from acodm_cli.schedule.schedule import Schedule

        return Schedule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
