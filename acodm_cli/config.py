"""Settings of a run: plain data, JSON in and out, no heavy imports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Command = Literal["proxy-train", "apply"]
ApplyMode = Literal["auto", "policy", "replay", "online"]
ReplayAlignment = Literal["progress", "steps", "tokens"]
MixerName = Literal[
    "ac-odm", "natural", "uniform", "temperature", "fixed", "replay", "odm", "doge", "doremi", "pike", "ado"
]
AgentPreset = Literal["default", "paper"]
Prior = Literal["given", "uniform", "natural"]
Estimator = Literal["sketch", "exact"]
Parallel = Literal["ddp", "fsdp"]
Compile = Literal["auto", "on", "off"]
PlotName = Literal["weights", "loss", "reward", "energy", "validation", "entropy"]
ExportName = Literal["levanter", "megatron", "mosaicml", "olmo-core", "nanotron", "torchtitan", "json", "csv"]

DEFAULT_STEPS = 300
DEFAULT_SEQ_LEN = 128
DEFAULT_BATCH = 32
DEFAULT_SEED = 0
DEFAULT_ESTIMATOR: Estimator = "sketch"
DEFAULT_ALIGNMENT_SIZE = 64
DEFAULT_ALIGNMENT_ROTATION = 6

# What does not change what a run computes (but for rounding), and may be another when it is resumed.
CHANGEABLE = frozenset(
    {
        "device", "parallel", "compile", "activation_checkpointing", "micro_batch", "skip_nonfinite", "checkpoint_every",
        "keep_checkpoints", "cache_dir",
    }
)  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run computes. Stored in the run directory, so that `--resume` needs only
    `--out`; stored in the schedule (less the paths), so that a schedule says how it was made.

    steps: optimiser steps. seq_len: tokens per sequence. batch: global batch in sequences. micro_batch:
    sequences per forward pass, None for automatic. lr: peak learning rate, None for the model's published one.
    """

    command: Command
    model: str
    data: str | None = None
    tokenizer: str | None = None
    text_field: str = "text"
    domain_field: str | None = None
    domain_tokens: int | None = None
    max_epochs: float | None = None
    map: dict[str, str] | None = None
    steps: int = DEFAULT_STEPS
    seq_len: int = DEFAULT_SEQ_LEN
    batch: int = DEFAULT_BATCH
    micro_batch: int | None = None
    lr: float | None = None
    lr_warmup: float = 0.01
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = DEFAULT_SEED
    device: str = "auto"
    dtype: str = "auto"
    parallel: Parallel = "ddp"
    compile: Compile = "auto"
    activation_checkpointing: bool = False
    skip_nonfinite: int = 0
    prior: Prior = "given"
    mixer: MixerName = "ac-odm"
    mixer_options: dict[str, str] | None = None
    agent: AgentPreset = "default"
    alignment: Estimator = DEFAULT_ESTIMATOR
    alignment_size: int = DEFAULT_ALIGNMENT_SIZE
    alignment_rotation: int = DEFAULT_ALIGNMENT_ROTATION
    alignment_layers: str = "all"
    schedule: str | None = None
    mode: ApplyMode = "auto"
    replay_by: ReplayAlignment = "progress"
    validate_every: int | None = None
    validation_sequences: int = 16
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    cache_dir: str | None = None
    save_model: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunSettings:
        known = {field.name for field in fields(cls)}
        unknown = set(value) - known
        if unknown:
            raise ValueError(f"unknown settings {sorted(unknown)}")
        return cls(**value)

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.seq_len

    def resolved_validate_every(self) -> int:
        return self.validate_every or max(1, self.steps // 10)

    def resolved_checkpoint_every(self) -> int:
        return self.checkpoint_every or max(1, min(1000, self.steps // 5))
