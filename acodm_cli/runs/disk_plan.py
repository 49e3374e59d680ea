"""How much of the disk a run takes, which is known before it trains."""

from __future__ import annotations

from pathlib import Path

from acodm_cli.engine.memory import FP32
from acodm_cli.errors import ResourceError
from acodm_cli.runs.folder import RunFolder
from acodm_cli.runs.settings import RunSettings
from acodm_cli.writing import device_of, free_bytes, size_of


def plan_disk(folder: RunFolder, settings: RunSettings, parameters: int) -> str:
    """Returns what the run will write, in words. parameters: how many the model has.

    Raises:
        ResourceError: the disk has no room for that.
    """
    weights = FP32 * parameters
    checkpoint = 3 * weights  # with AdamW's two moments
    kept = len(folder.checkpoints())
    checkpoints = max(1, settings.keep_checkpoints + 1 - kept) * checkpoint  # one more while it is written
    model = Path(settings.save_model).parent if settings.save_model else None
    place = folder.out.absolute().parent
    together = model is not None and device_of(model) == device_of(place)
    for where, needed in ((place, checkpoints + together * weights), (model, weights)):
        if where is not None and (free := free_bytes(where)) < needed:
            raise ResourceError(
                f"this run needs about {size_of(needed)} of disk in {where}, and {size_of(free)} are free; make room, or choose "
                f"another place with {'--out' if where == place else '--save-model'}"
            )
    return f"disk: a checkpoint takes about {size_of(checkpoint)}, {size_of(free_bytes(place))} are free"
