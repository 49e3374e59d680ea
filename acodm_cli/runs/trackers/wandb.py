"""The tracker `wandb` writes to Weights & Biases.

Its own environment variables decide where: WANDB_MODE=offline keeps the run in wandb/ beside the record, and
WANDB_PROJECT names the project (default: acodm).
"""

from __future__ import annotations

import os
from pathlib import Path

from acodm_cli.runs.trackers.tracker import Tracked, Tracker


class WeightsAndBiases(Tracker):
    """Writes a run with the record's name. Its identity at Weights & Biases is kept in out.wandb beside the record, so
    that a resumed run finds it. What it holds of steps after the checkpoint stays there."""

    package = "wandb"

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        super().__init__(tracked)
        identity = self.place(tracked.out)
        known = identity.read_text().strip() if tracked.resumed and identity.is_file() else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "acodm"),
            name=tracked.out.stem,
            id=known,
            resume="allow" if known else None,
            dir=str(tracked.out.absolute().parent),
            config=tracked.info,
            settings=wandb.Settings(silent=True),
        )
        identity.write_text(self.run.id + "\n")

    @classmethod
    def place(cls, out: Path) -> Path:
        return out.with_suffix(".wandb")

    @classmethod
    def owns(cls, place: Path) -> bool:
        return place.is_file() and place.stat().st_size < 100 and place.read_text().strip().isalnum()

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def end(self) -> None:
        self.run.finish()
