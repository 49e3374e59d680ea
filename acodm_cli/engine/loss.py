"""Cross-entropy of a causal language model, per token, without keeping its logits.

For a vocabulary of 50,000 the logits are the largest tensor of a step. `LinearCrossEntropy` makes them for some rows at
a time, and takes their gradient while they are there: nothing is computed twice, and nothing of that size is kept.
(PyTorch's chunked `linear_cross_entropy`, from 2.13 on, works in the same way, but returns one number: it gives neither
the losses per token nor access to the gradient of the logits.)

Shape letters: B sequences, T positions, N = B·T tokens, C tokens of a chunk, V vocabulary, I hidden and p sketch size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acodm_cli.alignment.block_sketch import BlockSketch
from acodm_cli.alignment.probe import GradientProbe

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

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
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
        total, losses_N, delta_Np = LinearCrossEntropy.apply(
            hidden_BTI.flatten(0, 1),
            head.weight if of_weights else head.weight.detach(),
            labels_BT.flatten(),
            scale,
            sketch,
            torch.is_grad_enabled(),
        )
        if sketch:
            assert probe is not None
            probe.add_output(head, delta_Np.unflatten(0, labels_BT.shape), hidden_BTI.detach())
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
        sketch: BlockSketch | None,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden_NI.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VI.dtype
        num_tokens, vocabulary = len(labels_N), len(weight_VI)
        losses_N = torch.empty(num_tokens, device=hidden_NI.device)
        delta_Np = losses_N.new_empty(num_tokens, sketch.width(vocabulary) if sketch else 0)
        grad_hidden_NI, grad_weight_VI = torch.zeros_like(hidden_NI), None
        with torch.autocast(device, enabled=False):
            x_NI, w_VI = hidden_NI.to(dtype), weight_VI.to(dtype)
            chunk = max(1, CHUNK_BYTES[device] // (4 * vocabulary))
            chunk = -(-num_tokens // -(-num_tokens // chunk))  # equal parts
            piece = max(1, CACHE_BYTES // (4 * vocabulary)) if device == "cpu" else chunk
            buffer_CV = x_NI.new_empty(min(chunk, num_tokens), vocabulary)
            for start in range(0, num_tokens, chunk):
                rows = slice(start, start + chunk)
                logits_CV = torch.mm(x_NI[rows], w_VI.T, out=buffer_CV[: len(labels_N[rows])]).float()
                for first in range(0, len(logits_CV), piece):
                    part = slice(first, first + piece)
                    of_all = slice(start + first, start + first + len(logits_CV[part]))
                    losses_N[of_all] = _differentiate_(logits_CV[part], labels_N[of_all], scale)
                    if sketch:
                        delta_Np[of_all] = sketch(logits_CV[part])
                if differentiate:
                    delta_CV = logits_CV.to(dtype)
                    grad_hidden_NI[rows] = torch.mm(delta_CV, w_VI)
                    if ctx.needs_input_grad[1]:
                        grad_weight_VI = _add_product(grad_weight_VI, delta_CV.T, x_NI[rows])
        if differentiate:
            # save_for_backward is not used: backward gives these away, and they become the gradients without a copy.
            ctx.gradients = grad_hidden_NI, grad_weight_VI
        ctx.mark_non_differentiable(losses_N, delta_Np)
        return losses_N.sum() * scale, losses_N, delta_Np

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden_NI, grad_weight_VI), ctx.gradients = ctx.gradients, None
        # The outer gradient is 1 in training. A product with it is one more pass over the largest weight, which takes
        # time on a CPU. On a GPU it does not, but looking at the value would make the host wait.
        if not (grads[0].is_cpu and grads[0] == 1):
            grad_hidden_NI = grad_hidden_NI * grads[0]
            grad_weight_VI = None if grad_weight_VI is None else grad_weight_VI * grads[0]
        return grad_hidden_NI, grad_weight_VI, None, None, None, None


def _differentiate_(logits_CV: Tensor, labels_C: Tensor, scale: float) -> Tensor:
    """Returns the losses [C], and turns the logits, in place, into the gradient of scale · Σ losses:
    scale · (softmax - onehot)."""
    used_C1 = (labels_C != IGNORED).unsqueeze(1)
    labels_C1 = labels_C.clamp(min=0).unsqueeze(1)
    scale_C1 = used_C1 * scale
    max_C1 = logits_CV.amax(dim=1, keepdim=True)
    label_logits_C1 = logits_CV.gather(1, labels_C1)
    sum_C1 = logits_CV.sub_(max_C1).exp_().sum(dim=1, keepdim=True)
    losses_C1 = (sum_C1.log() + max_C1 - label_logits_C1) * used_C1
    logits_CV.mul_(scale_C1 / sum_C1).scatter_add_(1, labels_C1, -scale_C1.to(logits_CV.dtype))
    return losses_C1.squeeze(1)


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
