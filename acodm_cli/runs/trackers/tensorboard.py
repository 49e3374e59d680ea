"""The tracker `tensorboard` writes event files to out.tensorboard/ beside the record."""

from __future__ import annotations

from pathlib import Path

from acodm_cli.runs.trackers.tracker import Tracked, Tracker

FLUSH_SECONDS = 10


class TensorBoard(Tracker):
    """Writes one event per step, which holds all numbers. Fifty events per step would take ten times as long."""

    package = "tensorboard"

    def __init__(self, tracked: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(tracked)
        # Older files of the folder may hold events from this step on: of a run that was replaced, or from after the
        # checkpoint.
        purge_step = tracked.step + 1
        self.writer = SummaryWriter(str(self.place(tracked.out)), purge_step=purge_step, flush_secs=FLUSH_SECONDS)

    @classmethod
    def place(cls, out: Path) -> Path:
        return out.with_name(f"{out.stem}.tensorboard")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self.writer._get_file_writer().add_summary(Summary(value=values), step)

    def end(self) -> None:
        self.writer.close()
