"""Estimates how much memory a run will take on each device, before anything is allocated.

Activations are counted, not guessed: a fake forward pass (shapes without data) tells what autograd would keep.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from acodm_cli.engine.device import Compute
from acodm_cli.engine.loss import CHUNK_BYTES
from acodm_cli.engine.settings import FsdpAccumulate
from acodm_cli.limits import memory_of_this_job

FP32 = 4
LIBRARIES_BYTES = 1 << 26
# Memory grows by this factor, because allocators lose some between pieces of different sizes.
FRAGMENTATION = 1.06


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a run, in bytes. weights, optimizer: of all parameters, or of this rank's shard. gradients: those that are
    there when a backward pass ends. accumulated: those of earlier micro-batches, or their buffers, that are there when one begins.
    gathered: what a sharded model has in one piece when a backward pass begins. head: the gradient of the unembedding. activations:
    what the backward pass of a micro-batch needs. loss: pieces of logits.
    libraries: their workspaces. checkpoint:
    the copy of the state from which a checkpoint is written while training goes on; 0 if there is no room for it, or if it is
    not on the device that trains."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    head: int
    activations: int
    loss: int
    libraries: int
    accumulated: int
    checkpoint: int = 0

    @property
    def tensors(self) -> int:
        """The bytes of tensors at the larger of two moments of a step: when the loss is done and the backward pass begins, or when the
        backward pass ends and all gradients are there."""
        begins = self.gathered + self.activations + self.loss + self.head + self.accumulated
        return self.weights + self.optimizer + max(begins, self.gradients)

    @property
    def total(self) -> int:
        """The bytes that the run takes."""
        return self.libraries + int(FRAGMENTATION * self.tensors) + self.checkpoint


def estimate_memory(
    config: Any,
    micro_batch: int,
    accumulates: bool,
    seq_len: int,
    compute: Compute,
    checkpointing: bool = False,
    shards: int = 1,
    fsdp_accumulate: FsdpAccumulate = "whole",
    buffers: bool = False,
) -> MemoryEstimate:
    """Estimates the memory of a run with these micro-batches, without its gradient probe and validation.

    accumulates: whether a step has several micro-batches. checkpointing: of activations. shards: the ranks over which weights,
    gradients and optimiser state are spread. buffers: whether ddp has buffers for all gradients."""
    weights, head, largest_block, activations = _count(config, micro_batch, seq_len, compute, checkpointing)
    tokens, chunk = micro_batch * seq_len, CHUNK_BYTES[compute.device.type]
    logits = min(chunk, FP32 * tokens * config.vocab_size)
    # In bf16, there are the product, its copy in fp32, and the gradient in bf16.
    copies = 1 if compute.dtype == torch.float32 else 2
    gathered = sent = 0
    if shards > 1:
        # There are the embeddings, two blocks, and the gradients of a block: as computed, in the order of the ranks, and in gloo's copy.
        gloo = compute.device.type == "cpu"
        gathered = 2 * head + (4 + gloo) * largest_block
        # The gradients of the embeddings are sent last, when no weights are gathered any more. Under gloo, that of the input embedding
        # is gone by then. What is received has its own memory before it is added to an earlier micro-batch's.
        sent = (4 + gloo) * head
        if accumulates and fsdp_accumulate == "sharded":
            sent += 2 * head // shards
    return MemoryEstimate(
        weights=weights // shards,
        gradients=weights // shards + sent,
        optimizer=2 * weights // shards,
        gathered=gathered,
        head=head,
        activations=activations,
        loss=copies * logits + 2 * FP32 * tokens * config.hidden_size,
        libraries=LIBRARIES_BYTES,
        # What ddp does not send yet lies outside of its buffers.
        accumulated=accumulates * weights // (shards if fsdp_accumulate == "sharded" else 1) + buffers * weights,
    )


def weight_bytes(config: Any) -> int:
    """Returns the bytes of a model's weights. Gradients and optimiser state take three times as many more."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters()) * FP32


def _count(
    config: Any, micro_batch: int, seq_len: int, compute: Compute, checkpointing: bool
) -> tuple[int, int, int, int]:
    """Returns the bytes of (all weights, the unembedding, the largest block, the activations that are kept)."""
    import transformers

    from acodm_cli.engine.models import transformer_blocks

    kept: dict[int, tuple[Any, int]] = {}
    with FakeTensorMode(), torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        parameters = {p.untyped_storage()._cdata: p.numel() * FP32 for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = (storage, storage.nbytes())
            return tensor

        inputs_BT = torch.zeros(micro_batch, seq_len, dtype=torch.int64)
        autocast = torch.autocast("cpu", compute.dtype, enabled=compute.dtype != torch.float32)
        blocks = transformer_blocks(model)
        experts = getattr(config, "num_experts_per_tok", None)
        if not experts:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
                model.base_model(input_ids=inputs_BT, use_cache=False)
        largest_block = max(FP32 * sum(p.numel() for p in block.parameters()) for block in blocks)
        head = FP32 * model.get_output_embeddings().weight.numel()
    activations = sum(size for _, size in kept.values())
    if experts:
        # Tokens are routed by values, which fake tensors do not have. In 16 bit, a block keeps 34 bytes per token and
        # feature, 19 of them in its MLP (2205.05198, section 4.1).
        bytes_each = (15 + 19 * experts) * (2 if compute.dtype == torch.float32 else 1)
        activations = bytes_each * micro_batch * seq_len * config.hidden_size * len(blocks)
    if checkpointing:  # the inputs of all blocks are kept, and the rest of one block at a time
        activations = len(blocks) * FP32 * micro_batch * seq_len * config.hidden_size + activations // len(blocks)
    return sum(parameters.values()), head, largest_block, activations


def peak_memory(compute: Compute) -> int:
    """The most bytes that this process has held at once: of the GPU, or of the machine if it computes on a CPU."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(compute: Compute) -> int:
    """The bytes that a run can still take: of the GPU, or of the machine and the control group (of a container or job)
    that it runs in."""
    if compute.device.type == "cuda":
        return torch.cuda.mem_get_info(compute.device)[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):  # macOS has no call for what is free
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    left = memory_of_this_job()
    return free if left is None else min(free, left)
