"""Cross-entropy of a causal language model, per token, without keeping its logits.

For a vocabulary of 50,000 the logits are the largest tensor of a step. `LinearCrossEntropy` makes them for some rows at
a time, and takes their gradient while they are there: nothing is computed twice, and nothing of that size is kept.
(PyTorch's chunked `linear_cross_entropy`, from 2.13 on, works in the same way, but returns one number: it gives neither
the losses per token nor access to the gradient of the logits.)

Shape letters: B sequences, T positions, N = B·T tokens, C tokens of a chunk, V vocabulary, I hidden and p sketch size, n
tokens that a probe looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from acodm_cli.alignment.block_sketch import BlockSketch
from acodm_cli.alignment.probe import GradientProbe, LogitSketch

IGNORED = -100
# The bytes of fp32 logits in memory at once. On a CPU, they are processed in pieces that stay in its cache.
CHUNK_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
CACHE_BYTES = 1 << 22


def token_losses(model: nn.Module, inputs_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """The cross-entropy of each predicted token in nats, fp32, differentiable; 0 where the label is ignored. [B, T]"""
    logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
    losses_N = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses_N.view_as(labels_BT)


class CausalLoss(nn.Module):
    """Computes the token losses of a model: by `LinearCrossEntropy` if its logits are a plain product of hidden states
    with the unembedding (as in Pythia, Llama, and most), else by the model's own forward pass."""

    def __init__(self, model: nn.Module, backend: str | None = None) -> None:
        """backend: of torch.compile, for all but the matrix products; None to compile nothing."""
        super().__init__()
        self.model = model
        self.backend = backend
        self.plain_head = _has_plain_head(model)

    def forward(
        self,
        inputs_BT: Tensor,
        labels_BT: Tensor,
        scale: float = 1.0,
        probe: GradientProbe | None = None,
        of_weights: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Returns (scale · Σ losses, differentiable; losses [B, T], detached, in nats, zero for an ignored label).

        probe: is shown the gradient of the logits. The sum must then be differentiated with an outer gradient of 1.
        of_weights: whether the gradient of the unembedding is wanted, which is computed at once.
        """
        if not self.plain_head or (probe is not None and probe.reads_whole_gradients):
            losses_BT = token_losses(self.model, inputs_BT, labels_BT)
            return losses_BT.sum() * scale, losses_BT.detach()
        hidden_BTI = self.model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state  # type: ignore[operator]
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        sketch = probe.output_sketch(head) if probe else None
        total, losses_N, delta_np = LinearCrossEntropy.apply(
            hidden_BTI.flatten(0, 1),
            head.weight if of_weights else head.weight.detach(),
            labels_BT.flatten(),
            scale,
            sketch,
            torch.is_grad_enabled(),
            self.backend,
        )
        if sketch:
            assert probe is not None
            probe.add_output(head, delta_np, hidden_BTI.detach())
        return total, losses_N.view_as(labels_BT)


class LinearCrossEntropy(torch.autograd.Function):
    """Computes scale · Σ_n ce(W h_n, label_n), the losses ce_n, and the sketched gradients of the logits.

    Matrix products run in the autocast dtype where one is set, everything else runs in fp32. With `differentiate`, the
    gradients by hidden states and weight are taken in the forward pass, where the logits are at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NI: Tensor,
        weight_VI: Tensor,
        labels_N: Tensor,
        scale: float,
        sketch: LogitSketch | None,
        differentiate: bool,
        backend: str | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden_NI.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VI.dtype
        num_tokens, vocabulary = len(labels_N), len(weight_VI)
        losses_N = torch.empty(num_tokens, device=hidden_NI.device)
        edges = sketch.edges if sketch else None
        sketched: list[Tensor] = []
        grad_hidden_NI, grad_weight_VI = torch.zeros_like(hidden_NI), None
        with torch.autocast(device, enabled=False):
            x_NI, w_VI = hidden_NI.to(dtype), weight_VI.to(dtype)
            scale_N = (labels_N != IGNORED) * scale
            chunk = max(1, CHUNK_BYTES[device] // (4 * vocabulary))
            chunk = -(-num_tokens // -(-num_tokens // chunk))  # equal parts
            chunks = parts(0, num_tokens, chunk, edges)
            buffer_CV = x_NI.new_empty(max(end - start for start, end in chunks), vocabulary)
            for start, end in chunks:
                rows = slice(start, end)
                logits_CV = torch.mm(x_NI[rows], w_VI.T, out=buffer_CV[: end - start])
                if backend:
                    tokens_n = sketch.between(start, end) if sketch else None
                    by_token = of_any_length(logits_CV, labels_N[rows], scale_N[rows], tokens_n)
                    how = sketch.sketch if sketch else None
                    losses_N[rows], delta_CV, found_np = _compiled(backend)(*by_token, how, differentiate)
                    if sketch:
                        sketched.append(found_np)
                else:
                    logits_CV = logits_CV.float()
                    piece = max(1, CACHE_BYTES // (4 * vocabulary)) if device == "cpu" else chunk
                    for first, last in parts(start, end, piece, edges):
                        piece_CV = logits_CV[first - start : last - start]
                        losses_N[first:last] = _differentiate_(piece_CV, labels_N[first:last], scale_N[first:last])
                        if sketch:
                            tokens_n = sketch.between(first, last)
                            sketched.append(sketch.sketch(piece_CV if tokens_n is None else piece_CV[tokens_n]))
                    delta_CV = logits_CV.to(dtype)
                if differentiate:
                    grad_hidden_NI[rows] = torch.mm(delta_CV, w_VI)
                    if ctx.needs_input_grad[1]:
                        grad_weight_VI = _add_product(grad_weight_VI, delta_CV.T, x_NI[rows])
        if differentiate:
            # save_for_backward is not used: backward gives these away, and they become the gradients without a copy.
            ctx.gradients = grad_hidden_NI, grad_weight_VI
        sketched_np = torch.cat(sketched) if sketch else losses_N.new_empty(0)
        ctx.mark_non_differentiable(losses_N, sketched_np)
        return losses_N.sum() * scale, losses_N, sketched_np

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden_NI, grad_weight_VI), ctx.gradients = ctx.gradients, None
        # The outer gradient is 1 in training. A product with it is one more pass over the largest weight, which takes
        # time on a CPU. On a GPU it does not, but looking at the value would make the host wait.
        if not (grads[0].is_cpu and grads[0] == 1):
            grad_hidden_NI = grad_hidden_NI * grads[0]
            grad_weight_VI = None if grad_weight_VI is None else grad_weight_VI * grads[0]
        return grad_hidden_NI, grad_weight_VI, None, None, None, None, None


def parts(first: int, last: int, most: int, edges: NDArray[np.int64] | None = None) -> list[tuple[int, int]]:
    """Cuts a range into parts of about `most`. edges: the places where it may be cut, None for all."""
    cuts = np.append(np.arange(first, last, most), last)
    if edges is not None:
        cuts = np.unique(edges[np.searchsorted(edges, cuts, side="right") - 1])
    return list(pairwise(cuts.tolist()))


def _differentiate_(logits_CV: Tensor, labels_C: Tensor, scale_C: Tensor) -> Tensor:
    """Returns the losses [C], and turns the logits, in place, into the gradient of Σ scale · losses:
    scale · (softmax - onehot). scale_C: 0 where the label is ignored."""
    used_C1 = (labels_C != IGNORED).unsqueeze(1)
    labels_C1, scale_C1 = labels_C.clamp(min=0).unsqueeze(1), scale_C.unsqueeze(1)
    max_C1 = logits_CV.amax(dim=1, keepdim=True)
    label_logits_C1 = logits_CV.gather(1, labels_C1)
    sum_C1 = logits_CV.sub_(max_C1).exp_().sum(dim=1, keepdim=True)
    losses_C1 = (sum_C1.log() + max_C1 - label_logits_C1) * used_C1
    logits_CV.mul_(scale_C1 / sum_C1).scatter_add_(1, labels_C1, -scale_C1.to(logits_CV.dtype))
    return losses_C1.squeeze(1)


def _differentiated(
    logits_CV: Tensor,
    labels_C: Tensor,
    scale_C: Tensor,
    tokens_n: Tensor | None,
    sketch: BlockSketch | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What `_differentiate_` computes, in a form for a compiler, whose kernels read the logits twice and write their gradient once, in
    the dtype of the product. Returns (losses [C]; the gradient [C, V]; what a probe wants of it [n, p])."""
    max_C1 = logits_CV.amax(dim=1, keepdim=True).float()
    sum_C1 = (logits_CV.float() - max_C1).exp().sum(dim=1, keepdim=True)
    labels_C1 = labels_C.clamp(min=0).unsqueeze(1)
    losses_C1 = sum_C1.log() + max_C1 - logits_CV.gather(1, labels_C1).float()
    losses_C = losses_C1.squeeze(1) * (labels_C != IGNORED)
    if not differentiate:
        return losses_C, None, None
    of_rows = logits_CV, max_C1, scale_C.unsqueeze(1) / sum_C1, labels_C1, scale_C.unsqueeze(1)
    delta_CV = _gradient(*of_rows).to(logits_CV.dtype)
    if sketch is None:
        return losses_C, delta_CV, None
    # The gradient of what a probe wants is made once more: otherwise, that of all tokens would be written in fp32, to be read here.
    wanted = of_rows if tokens_n is None else [x_CF[tokens_n] for x_CF in of_rows]
    return losses_C, delta_CV, sketch(_gradient(*wanted))


def _gradient(logits_CV: Tensor, max_C1: Tensor, share_C1: Tensor, labels_C1: Tensor, scale_C1: Tensor) -> Tensor:
    one_hot_CV = torch.arange(logits_CV.shape[1], device=labels_C1.device) == labels_C1
    return (logits_CV.float() - max_C1).exp() * share_C1 - one_hot_CV * scale_C1


@cache
def _compiled(backend: str) -> Callable[..., Any]:
    return torch.compile(_differentiated, backend=backend, fullgraph=True)


def of_any_length(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns the tensors, for whose numbers of rows a graph must not be made anew."""
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensors


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Returns total + left @ right, summed in fp32. total: None for zero; else it may be changed in place."""
    if total is None:
        return torch.mm(left, right).float()
    if left.dtype == torch.float32:
        return total.addmm_(left, right)
    return total.add_(torch.mm(left, right))


@torch.no_grad()
def _has_plain_head(model: nn.Module) -> bool:
    """Whether the logits are exactly W h, where h is what the backbone returns: no bias, scale, or cap is in between.

    The head is made to answer with large numbers, so that a cap would show.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    backbone = model.base_model
    if not isinstance(head, nn.Linear) or head.bias is not None or backbone is model:
        return False
    seen = []
    answer_V = torch.linspace(-1000, 1000, head.out_features, device=head.weight.device)

    def answer(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        seen.append(inputs[0])
        return answer_V.expand_as(output)

    inputs_BT = torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device)
    handle = head.register_forward_hook(answer)
    training = model.training
    model.eval()
    try:
        logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
        hidden_BTI = backbone(input_ids=inputs_BT, use_cache=False).last_hidden_state
    finally:
        handle.remove()
        model.train(training)
    return torch.equal(logits_BTV, answer_V.expand_as(logits_BTV)) and torch.equal(seen[0], hidden_BTI)
