"""The columns of a schedule file, and what a schedule holds in memory.

Shape letters: S rows, each of a step or of a span of steps; K domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FORMAT_VERSION = 1

DOMAIN_COLUMNS = {
    "weight": np.float32,
    "samples": np.int32,
    "loss": np.float32,
    "reward": np.float32,
    "validation_loss": np.float32,
}
# What the names of the columns of targets begin with: target.NAME.loss, target.NAME.bits_per_byte, …
TARGETS = "target."
STEP_COLUMNS = (
    "train_loss",
    "learning_rate",
    "interaction_energy",
    "self_energy",
    "critic_loss",
    "actor_objective",
    "entropy",
)
REQUIRED = {"step", "tokens", "domain", "weight", "samples", "train_loss", "learning_rate", "entropy"}

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("domain", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        *[pa.field(n, pa.from_numpy_dtype(t), nullable=n not in REQUIRED) for n, t in DOMAIN_COLUMNS.items()],
        *[pa.field(n, pa.float32(), nullable=n not in REQUIRED) for n in STEP_COLUMNS],
    ]
)


Per = Literal["step", "domain"]


@dataclass(frozen=True, repr=False)
class Rows:
    """What a schedule holds.

    domains: the K names, in order. step_S, tokens_S: int64, the last step of each row and the cumulative tokens after
    it. per_domain: column name to values [S, K]; missing values are NaN. per_step: column name to values [S]. Both hold
    only the columns that were read. info: the metadata's JSON object; `Schedule.run` is the same, typed. policy: safetensors
    bytes. metrics: every further column of the file, read or not, and whether it is per step or per domain.
    """

    domains: list[str]
    step_S: NDArray[np.int64]
    tokens_S: NDArray[np.int64]
    per_domain: dict[str, NDArray[Any]]
    per_step: dict[str, NDArray[np.float32]]
    info: dict[str, Any] = field(default_factory=dict)
    policy: bytes | None = None
    metrics: dict[str, Per] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """All columns that were read, by name, each as [S] or [S, K]."""
        return {"step": self.step_S, "tokens": self.tokens_S, **self.per_domain, **self.per_step}
