"""How much memory a run takes, and how its batch is divided so that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from acodm_cli.alignment.probe import GradientProbe
from acodm_cli.engine.device import Compute
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.memory import FP32, MemoryEstimate, StepPlan, estimate_memory, free_memory, weight_bytes
from acodm_cli.engine.models import PRESETS, model_config
from acodm_cli.engine.settings import TrainSettings
from acodm_cli.errors import ResourceError

# The most logits that a micro-batch may have on a CPU, which is not faster with more. A GPU takes what fits.
MAX_LOGITS = 1 << 27


def plan_memory(
    settings: TrainSettings, config: Any, compute: Compute, ranks: Ranks, whole_logits: bool = False
) -> tuple[int, MemoryEstimate]:
    """Returns the size of the micro-batch, and an estimate of the memory that a run with it takes.

    If the settings do not give the size, a rank's share of the batch is divided into the fewest equal parts that fit, and whose
    logits stay within bounds on a CPU.

    settings: must say whether to compile. whole_logits: whether a probe needs the model's own logits.

    Raises:
        ResourceError: the run does not fit; the message says what would fit.
    """
    share = settings.batch // ranks.world_size
    shards = ranks.world_size if settings.parallel == "fsdp" else 1
    plan = StepPlan(
        share,
        settings.seq_len,
        checkpointing=settings.activation_checkpointing,
        shards=shards,
        fsdp_accumulate=settings.fsdp_accumulate,
        compiled=settings.compile == "on" and compute.device.type == "cuda",
        whole_logits=whole_logits,
    )

    def estimate(micro_batch: int, of: Any = config, **changed: Any) -> MemoryEstimate:
        asked = replace(plan, micro_batch=micro_batch, accumulates=micro_batch < share, **changed)
        return estimate_memory(of, replace(asked, buffers=ranks.many and asked.shards == 1), compute)

    # Ranks that compute on the CPU of one machine share its memory. All plan with the least that any of them has,
    # because micro-batches of different sizes would make the ranks of fsdp wait for each other.
    free = -ranks.largest(-free_memory(compute)) // (ranks.world_size if compute.device.type == "cpu" else 1)
    most = MAX_LOGITS // (settings.seq_len * config.vocab_size) if compute.device.type == "cpu" else share
    parts = -(-share // max(1, most))
    micro_batch = settings.micro_batch or -(-share // parts)
    if settings.micro_batch is None and 4 * weight_bytes(config) // shards > free:
        micro_batch = 1  # it does not fit at all, and to estimate all that is tried below would take its time
    found = estimate(micro_batch)
    while found.total > free and micro_batch > 1 and settings.micro_batch is None:
        micro_batch = -(-micro_batch // 2)
        found = estimate(micro_batch)
    if found.total <= free:
        return micro_batch, found
    message = (
        f"{settings.model_name} takes about {gib(found.total)} with --micro-batch {micro_batch}, and {gib(free)} are free on "
        f"{compute.label}; "
    )
    if micro_batch > 1 and estimate(1).total <= free:
        raise ResourceError(message + "use a smaller --micro-batch, or leave it out")
    if shards > 1 and estimate(1, fsdp_accumulate="sharded").total <= free:
        raise ResourceError(message + "use --fsdp-accumulate sharded")
    if 4 * weight_bytes(config) // shards <= free and estimate(1, checkpointing=True).total <= free:
        raise ResourceError(message + "use --activation-checkpointing")
    advice = []
    counts = (2, 4, 8, 16, 32, 64) if compute.device.type == "cuda" else ()
    many = next((n for n in counts if estimate(1, checkpointing=True, shards=n).total <= free), None)
    if many is not None:
        advice.append(f"{many} GPUs with --parallel fsdp and --activation-checkpointing")

    def fits(name: str) -> bool:
        of = model_config(name, config.vocab_size, settings.seq_len)
        return 4 * weight_bytes(of) <= free and estimate(1, of, checkpointing=False, shards=1).total <= free

    fitting = next((n for n in reversed(PRESETS) if n.startswith("pythia") and fits(n)), None)  # the largest
    advice.append(f"a smaller model: {fitting} fits" if fitting else "a machine with more memory")
    raise ResourceError(message + "use " + ", or ".join(advice))


def check_probe(probe: GradientProbe, batch: int, compute: Compute) -> None:
    """Raises ResourceError if the gradients that the probe keeps do not fit. batch: the global batch in sequences."""
    free = free_memory(compute)
    if (needed := probe.bytes_needed(batch)) > 0.6 * free:
        raise ResourceError(
            f"the per-domain gradients of these layers take {gib(needed)}, {gib(free)} are free; use --alignment sketch, "
            "fewer --alignment-layers, or a smaller model"
        )


def with_checkpoint(
    memory: MemoryEstimate, probe: GradientProbe | None, batch: int, parameters: int, compute: Compute, ranks: Ranks
) -> MemoryEstimate:
    """Returns the estimate with a copy of the state, from which checkpoints are written while training goes on, if that fits too.
    A GPU needs no room for it, because it is on the host, whose memory is not estimated (see `HostCopy`).

    memory: the estimate of a run whose weights are there by now. batch: the global batch in sequences. parameters: how many
    the model has."""
    if compute.device.type != "cpu":
        return memory
    copied = 3 * FP32 * parameters  # with AdamW's two moments
    needed = memory.total - memory.weights + copied + (probe.bytes_needed(batch) if probe else 0)
    return replace(memory, checkpoint=copied) if needed <= free_memory(compute) // ranks.world_size else memory


def gib(size: int) -> str:
    """Returns a number of bytes as text in GiB."""
    return f"{size / 2**30:.1f} GiB"


@contextmanager
def memory_errors(settings: TrainSettings) -> Iterator[None]:
    """Turns running out of memory in its block into a ResourceError with advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if "alloc" not in str(error).lower() or "memory" not in str(error).lower():
            raise
    else:
        return
    raise ResourceError(
        f"not enough memory for {settings.model_name} with {settings.seq_len} tokens per sequence; lower --micro-batch or "
        "--seq-len, use --dtype bf16, or a smaller --model"
    )
