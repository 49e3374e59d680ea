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
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from acodm_cli.engine.device import Compute
from acodm_cli.engine.loss import CHUNK_BYTES, token_losses
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
    gathered: what a sharded model has in one piece when a backward pass begins. head: the gradient of the unembedding, if it is there
    when the loss is done. activations: what the backward pass of a micro-batch needs. loss: pieces of logits, or the whole of them with
    their gradients. libraries: their workspaces. checkpoint: the copy of the state from which a checkpoint is written while training
    goes on; 0 if there is no room for it, or if it is not on the device that trains."""

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


@dataclass(frozen=True)
class StepPlan:
    """How a step is divided, and what it keeps meanwhile.

    micro_batch: sequences. accumulates: whether a step has several micro-batches. checkpointing: of activations. shards: the ranks over
    which weights, gradients and optimiser state are spread. buffers: whether ddp has buffers for all gradients. compiled: whether the
    loss is. whole_logits: whether a probe needs the model's own logits, all at once; they are there in any case if the unembedding is
    not a plain product."""

    micro_batch: int
    seq_len: int
    accumulates: bool = False
    checkpointing: bool = False
    shards: int = 1
    fsdp_accumulate: FsdpAccumulate = "whole"
    buffers: bool = False
    compiled: bool = False
    whole_logits: bool = False

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.micro_batch * self.seq_len


def estimate_memory(config: Any, plan: StepPlan, compute: Compute) -> MemoryEstimate:
    """Estimates the memory of a run with such steps, without its gradient probe and validation."""
    weights, head, largest_block, activations, kept_of_logits = _count(config, plan, compute)
    shards = plan.shards
    if kept_of_logits:
        # When the backward pass begins, there are also the gradients of the log-probabilities and of the logits. Both are gone when
        # there is that of the unembedding.
        loss, head_when_done = kept_of_logits + max(2 * FP32 * plan.tokens * config.vocab_size, head), 0
    else:
        loss, head_when_done = _in_pieces(config, plan, head, compute), head
    gathered = sent = 0
    if shards > 1:
        # There are the embeddings, two blocks, and the gradients of a block: as computed, in the order of the ranks, and in gloo's copy.
        gloo = compute.device.type == "cpu"
        gathered = 2 * head + (4 + gloo) * largest_block
        # The gradients of the embeddings are sent last, when no weights are gathered any more. Under gloo, that of the input embedding
        # is gone by then. What is received has its own memory before it is added to an earlier micro-batch's.
        sent = (4 + gloo) * head
        if plan.accumulates and plan.fsdp_accumulate == "sharded":
            sent += 2 * head // shards
    return MemoryEstimate(
        weights=weights // shards,
        gradients=weights // shards + sent,
        optimizer=2 * weights // shards,
        gathered=gathered,
        head=head_when_done,
        activations=activations,
        loss=loss,
        libraries=LIBRARIES_BYTES,
        # What ddp does not send yet lies outside of its buffers.
        accumulated=(
            plan.accumulates * weights // (shards if plan.fsdp_accumulate == "sharded" else 1) + plan.buffers * weights
        ),
    )


def _in_pieces(config: Any, plan: StepPlan, head: int, compute: Compute) -> int:
    """Returns the bytes that `LinearCrossEntropy` takes at most, without the gradient of the unembedding. head: those of the
    unembedding."""
    logits = min(CHUNK_BYTES[compute.device.type], FP32 * plan.tokens * config.vocab_size)
    hidden = FP32 * plan.tokens * config.hidden_size
    if compute.dtype == torch.float32:
        # The gradient by the logits takes their place, unless it comes out of a compiled kernel.
        return (2 if plan.compiled else 1) * logits + 2 * hidden
    # In bf16, there are the product and the gradient of it, and between them a copy in fp32 that a compiled kernel does not make; and
    # hidden states, unembedding and a part of its gradient once more.
    return (1 if plan.compiled else 2) * logits + 2 * hidden + hidden // 2 + head


def weight_bytes(config: Any) -> int:
    """Returns the bytes of a model's weights. Gradients and optimiser state take three times as many more."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters()) * FP32


def _count(config: Any, plan: StepPlan, compute: Compute) -> tuple[int, int, int, int, int]:
    """Returns the bytes of (all weights, the unembedding, the largest block, the activations that are kept, and what the loss keeps of
    the whole logits; 0 if it makes them in pieces)."""
    import transformers

    from acodm_cli.engine.models import transformer_blocks

    kept: dict[int, tuple[Any, int]] = {}
    of_backbone = 0
    # What the backbone gives, what the unembedding takes and gives, and what the model gives.
    passed: list[Tensor] = []
    tokens, whole_logits = plan.tokens, plan.whole_logits
    with FakeTensorMode(), torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        parameters = {p.untyped_storage()._cdata: p.numel() * FP32 for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = (storage, storage.nbytes())
            return tensor

        def leave_backbone(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal of_backbone
            of_backbone = sum(size for _, size in kept.values())
            passed.append(output[0])

        inputs_BT = torch.zeros(plan.micro_batch, plan.seq_len, dtype=torch.int64)
        autocast = torch.autocast("cpu", compute.dtype, enabled=compute.dtype != torch.float32)
        blocks, unembedding = transformer_blocks(model), model.get_output_embeddings()
        experts = getattr(config, "num_experts_per_tok", None)
        if not experts:
            model.base_model.register_forward_hook(leave_backbone)
            unembedding.register_forward_hook(lambda module, inputs, output: passed.extend((inputs[0], output)))
            model.register_forward_hook(lambda module, inputs, output: passed.append(output.logits))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
                losses_BT = token_losses(model, inputs_BT, inputs_BT)
            plain = isinstance(unembedding, nn.Linear) and unembedding.bias is None and model.base_model is not model
            given, taken, made, logits = (tensor.untyped_storage()._cdata for tensor in passed)
            whole_logits = whole_logits or not plain or given != taken or made != logits
            del losses_BT
        largest_block = max(FP32 * sum(p.numel() for p in block.parameters()) for block in blocks)
        head = FP32 * unembedding.weight.numel()
    activations = of_backbone
    of_logits = sum(size for _, size in kept.values()) - of_backbone
    if experts:
        # Tokens are routed by values, which fake tensors do not have. In 16 bit, a block keeps 34 bytes per token and
        # feature, 19 of them in its MLP (2205.05198, section 4.1). Their unembeddings are plain products.
        bytes_each = (15 + 19 * experts) * (2 if compute.dtype == torch.float32 else 1)
        activations = bytes_each * tokens * config.hidden_size * len(blocks)
        of_logits = FP32 * tokens * config.vocab_size
    if plan.checkpointing:  # the inputs of all blocks are kept, and the rest of one block at a time
        activations = len(blocks) * FP32 * tokens * config.hidden_size + activations // len(blocks)
    return sum(parameters.values()), head, largest_block, activations, of_logits if whole_logits else 0


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
