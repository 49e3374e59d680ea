"""The settings of training: what the engine is told of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from acodm_cli.errors import UsageError
from acodm_cli.settings import setting

LrSchedule = Literal["cosine", "wsd", "linear", "constant"]
Parallel = Literal["ddp", "fsdp"]
FsdpAccumulate = Literal["whole", "sharded"]
Compile = Literal["auto", "on", "off"]

# The share of the run over which wsd decays, by default. MiniCPM (2404.06395) finds 10% of a long run enough.
DECAY_SHARE = 0.2


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained."""

    PANEL: ClassVar = "Training"

    model: str = "pythia-14m"
    """The model: a preset (pythia-14m … pythia-12b, llama-tiny …), or a folder or hub name whose configuration is
    used."""

    init_from: str | None = setting(None, changeable=True)
    """Trained weights to go on with: a folder or hub name with safetensors. Its configuration is used (leave out --model), and its
    tokenizer, unless --tokenizer is given. The seed then decides batches and agent only."""

    resize_embeddings: bool = setting(False)
    """Give the model of --init-from rows for tokens that it does not have, or let the tokenizer be another than its own."""

    steps: int = setting(300, least=1)
    """The number of optimiser steps. Default of apply: the schedule's."""

    batch: int = setting(32, least=1)
    """The global batch in sequences. Default of apply: the schedule's."""

    seq_len: int = setting(128, least=2)
    """The number of predicted tokens per sequence. Default of apply: the schedule's."""

    micro_batch: int | None = setting(None, least=1, changeable=True)
    """The number of sequences per forward pass. Default: what fits into memory."""

    lr: float | None = setting(None, least=1e-9, most=1.0)
    """The peak learning rate. Default: the model's published one; with --init-from 0.3 times that."""

    lr_warmup: float = setting(0.01, least=0, most=1)
    """The share of the run's steps in which the learning rate rises to its peak."""

    lr_schedule: LrSchedule = "cosine"
    """What the learning rate does after its warm-up. cosine, linear: fall over the rest of the run; wsd: stay, and fall linearly
    at the end (MiniCPM, 2404.06395); constant: stay."""

    lr_decay_share: float | None = setting(None, above=0, most=1)
    """The share of the run's steps, at its end, in which the learning rate of wsd falls. Default: 0.2."""

    lr_min: float = setting(0.1, least=0, most=1)
    """What the learning rate falls to by the end of the run, as a share of its peak."""

    weight_decay: float = setting(0.1, least=0)
    """The weight decay of AdamW, of matrices only."""

    clip: float = setting(1.0, above=0)
    """The norm that the gradient is clipped to."""

    seed: int = setting(0, least=0, most=2**31 - 1)
    """The seed of weights, batches and agent. Default of apply: the schedule's."""

    device: str = setting("auto", changeable=True)
    """Where to compute: auto, cpu, cuda or cuda:N."""

    dtype: str = "auto"
    """The precision of matrix products: auto (bf16 on GPUs from Ampere on, else fp32), bf16 or fp32."""

    parallel: Parallel = setting("ddp", changeable=True)
    """How many ranks share the work: ddp (each rank holds the model) or fsdp (each rank holds a shard of it)."""

    fsdp_accumulate: FsdpAccumulate = setting("whole", changeable=True)
    """What each rank of fsdp adds the gradients of micro-batches up in: all of them (whole, sent once per step), or its shard
    (sharded, sent with each micro-batch: less memory, more traffic)."""

    rank_timeout: float = setting(10.0, least=0.01, changeable=True)
    """The minutes that a step, its validation or a checkpoint may take where there are several ranks. Then the run ends and says
    which rank hangs. What a GPU waits for in NCCL has twice as long."""

    compile: Compile = setting("auto", changeable=True)
    """Whether the transformer blocks run through torch.compile. auto: on CUDA, where Triton and a C compiler are."""

    deterministic: bool = setting(False, changeable=True)
    """Compute with algorithms alone that give the same numbers in each run on the same machine and software. On a GPU they take
    longer; on a CPU all do."""

    activation_checkpointing: bool = setting(False, changeable=True)
    """Keep less in memory, for a third more computation."""

    skip_nonfinite: int = setting(0, least=0, changeable=True)
    """Pass over this many steps whose loss or gradient is not finite, before the run stops."""

    validate_every: int | None = setting(None, least=1)
    """The number of steps between validations. Default: a tenth of the run, more in a very short one."""

    validation_sequences: int | None = setting(None, least=1)
    """The number of validation sequences per domain or target, spread evenly over its text. Default: what a tenth of the run's
    time allows, at most 1024."""

    for_tokens: int | None = setting(None, least=1, commands=("proxy-train",), scaled=True, panel="Corpus")
    """The token budget of the target's run, such as 300B. Each domain is cut to the share of its sequences that this run's budget
    is of it, so that the proxy repeats a domain as often as the target will."""

    max_epochs: float | None = setting(None, least=0.01, panel="Corpus")
    """Never repeat a domain more often than this; its weight goes to the others."""

    @property
    def model_name(self) -> str:
        """What the user calls the model: where its weights come from, or its configuration."""
        return self.init_from or self.model

    @property
    def corpus_share(self) -> float:
        """The share of each domain's sequences that are trained on."""
        return 1.0 if self.for_tokens is None else min(1.0, self.steps * self.tokens_per_step / self.for_tokens)

    @property
    def decay_share(self) -> float | None:
        """The share of the run's steps in which the learning rate of wsd falls, None of another schedule."""
        if self.lr_schedule != "wsd":
            return None
        return DECAY_SHARE if self.lr_decay_share is None else self.lr_decay_share

    def check_learning_rate(self) -> None:
        """Raises UsageError if an option of the learning rate does nothing beside another, or the parts of wsd do not fit."""
        if self.lr_decay_share is not None and self.lr_schedule != "wsd":
            raise UsageError(
                f"--lr-decay-share {self.lr_decay_share:g} does nothing with --lr-schedule {self.lr_schedule}; leave it out, or "
                "give --lr-schedule wsd"
            )
        if self.lr_schedule == "constant" and self.lr_min != TrainSettings.lr_min:
            raise UsageError(f"--lr-min {self.lr_min:g} does nothing with --lr-schedule constant; leave it out")
        if self.decay_share is not None and self.lr_warmup + self.decay_share > 1:
            raise UsageError(
                f"--lr-warmup {self.lr_warmup:g} and the decay of wsd over {self.decay_share:g} of the run are more than all of it; "
                "lower --lr-warmup or --lr-decay-share"
            )

    def check_parallel(self) -> None:
        """Raises UsageError if an option of fsdp is given without it."""
        if self.fsdp_accumulate != "whole" and self.parallel != "fsdp":
            raise UsageError(
                f"--fsdp-accumulate {self.fsdp_accumulate} does nothing with --parallel {self.parallel}; leave it out, or give "
                "--parallel fsdp"
            )

    @property
    def tokens_per_step(self) -> int:
        """The number of predicted tokens in a global batch."""
        return self.batch * self.seq_len
