"""Gradient probe: watches the linear layers of a model during its ordinary backward pass and gives the Gram matrix."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from acodm_cli.alignment.exact import PerDomainWeightGradient
from acodm_cli.errors import UsageError

LAYER_RULES = ("all", "attention", "mlp", "unembedding")


def select_linear_layers(model: nn.Module, rule: str) -> dict[str, nn.Linear]:
    """Linear layers of a causal language model, by rule.

    rule: `all`, `attention`, `mlp`, `unembedding`, or several of these and of module-name patterns
    (`*.mlp.*`), separated by commas.

    Raises:
        UsageError: a rule selects nothing.
    """
    head = model.get_output_embeddings() if isinstance(model, transformers.PreTrainedModel) else None
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    selected: dict[str, nn.Linear] = {}
    for part in (part.strip() for part in rule.split(",")):
        chosen = {name: module for name, module in linear.items() if _matches(name, module is head, part)}
        if not chosen:
            rules = ", ".join(LAYER_RULES)
            raise UsageError(
                f"--alignment-layers {part!r} selects no linear layer; use {rules}, or a pattern such as "
                f"'{next(iter(linear), '*.mlp.*')}'"
            )
        selected |= chosen
    return {name: module for name, module in linear.items() if name in selected}


def _matches(name: str, is_head: bool, part: str) -> bool:
    if part == "all":
        return True
    if part == "unembedding":
        return is_head
    if part in ("attention", "mlp"):
        needle = "attn" if part == "attention" else "mlp"
        return not is_head and needle in name.replace("attention", "attn")
    return fnmatchcase(name, part)


class ExactProbe:
    """Exact per-domain gradients of the selected linear layers' weights.

    Memory: K·P floats for P selected weights. Use: `begin` before each micro-batch's forward pass, any number of
    backward passes, then `gram` once per step. Between steps, and without `begin` (validation), it is inert.
    """

    def __init__(self, layers: dict[str, nn.Linear], num_domains: int) -> None:
        assert layers
        assert num_domains > 0
        self.layers = layers
        self.num_domains = num_domains
        self._rows_by_domain: dict[int, Tensor] | None = None
        self._virtual: dict[str, Tensor] = {}
        for name, layer in layers.items():
            out_features, in_features = layer.weight.shape
            # One zero, expanded: a leaf of the right shape that takes no memory.
            zero = torch.zeros((), device=layer.weight.device)
            self._virtual[name] = zero.expand(num_domains, out_features, in_features).requires_grad_()
            layer.forward = self._watched(name, layer)  # type: ignore[method-assign, assignment]

    def _watched(self, name: str, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(x_BTI: Tensor) -> Tensor:
            if self._rows_by_domain is None or not torch.is_grad_enabled():
                return F.linear(x_BTI, layer.weight, layer.bias)
            if torch.is_autocast_enabled(x_BTI.device.type):
                # Cast once here, so that the layer and the probe keep the same tensor for backward.
                x_BTI = x_BTI.to(torch.get_autocast_dtype(x_BTI.device.type))
            y_BTO = F.linear(x_BTI, layer.weight, layer.bias)
            return PerDomainWeightGradient.apply(y_BTO, x_BTI, self._virtual[name], self._rows_by_domain)

        return forward

    def begin(self, domains_B: Tensor) -> None:
        """Say which domain each sequence of the coming micro-batch belongs to. domains_B: int64 on the host."""
        device = next(iter(self._virtual.values())).device
        self._rows_by_domain = {
            int(domain): (domains_B == domain).nonzero().squeeze(1).to(device) for domain in domains_B.unique()
        }

    def gram(self, tokens_K: Tensor) -> Tensor:
        """H_KK of the step's domain-mean gradients, and reset for the next step.

        The backward passes must have been of Σ_t ce_t / N over all N predicted tokens of the step, so that a
        domain's share is N_i/N of the gradient of its own mean loss. tokens_K: predicted tokens per domain, N_i.
        A domain without tokens has a zero row and column.
        """
        tokens_K = tokens_K.to(torch.float64)
        scale_K = torch.where(tokens_K > 0, tokens_K.sum() / tokens_K.clamp(min=1), 0.0)
        gram_KK = torch.zeros(self.num_domains, self.num_domains, dtype=torch.float64)
        for virtual in self._virtual.values():
            if virtual.grad is not None:
                grad_KP = virtual.grad.flatten(1)
                gram_KK += (grad_KP @ grad_KP.T).to("cpu", torch.float64)
                virtual.grad = None
        self._rows_by_domain = None
        return gram_KK * scale_K[:, None] * scale_K[None, :]

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self.layers.values():
            del layer.forward
