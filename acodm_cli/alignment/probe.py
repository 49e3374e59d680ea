"""Gradient probe: watches the linear layers of a model during its ordinary backward pass and gives the Gram matrix of
the domains' gradients.

Shape letters: B sequences, T positions, I and O a layer's input and output features, K domains, G groups. A group is
a domain, or one half of a domain's sequences where an unbiased ‖g_i‖² is wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import transformers
from torch import Tensor, nn

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


@dataclass(frozen=True)
class DomainGradients:
    """What a step's gradients say of the domains; g_i is the gradient of domain i's mean token loss.

    gram_KK: H_ij = ⟨g_i, g_j⟩ of this batch, zero rows and columns for absent domains. Its diagonal holds the sampling
    noise of the batch besides ‖g_i‖². self_K: ‖g_i‖² without it, NaN where it cannot be had. Both float64, on the host.
    """

    gram_KK: Tensor
    self_K: Tensor


class GradientProbe(ABC):
    """Per-domain gradients of the selected linear layers' weights.

    Use: `start` a step; `begin` before each micro-batch's forward pass; any number of forward and backward passes,
    all of Σ_t ce_t / N over the N predicted tokens of the step; `finish` once. Outside of that (validation) it is
    inert.
    """

    def __init__(self, layers: dict[str, nn.Linear], num_domains: int, halves: bool) -> None:
        """halves: split every domain's sequences into two groups, for an unbiased ‖g_i‖²."""
        assert layers
        assert num_domains > 0
        self.layers = layers
        self.num_domains = num_domains
        self.halves = 2 if halves else 1
        self.num_groups = num_domains * self.halves
        self.device = next(iter(layers.values())).weight.device
        self.sequences_K = torch.zeros(num_domains, dtype=torch.int64)
        self.tokens_G = torch.zeros(self.num_groups, dtype=torch.int64)
        self.groups_B: Tensor | None = None
        self.virtual = {name: self._make_virtual(name) for name in layers}
        self._own_forward = {name: layer.forward for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.forward = self._watched(name, layer.forward)  # type: ignore[method-assign, assignment]

    @abstractmethod
    def _make_virtual(self, name: str) -> Tensor:
        """The leaf that a layer's per-group gradient goes to. [G, ...]"""

    @abstractmethod
    def _watch(self, name: str, y_BTO: Tensor, x_BTI: Tensor, groups_B: Tensor) -> Tensor:
        """y, with the backward pass arranged to fill the gradient of the virtual weight."""

    @abstractmethod
    def bytes_needed(self) -> int: ...

    def _watched(self, name: str, own_forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x_BTI: Tensor) -> Tensor:
            if self.groups_B is None or not torch.is_grad_enabled():
                return own_forward(x_BTI)
            if torch.is_autocast_enabled(x_BTI.device.type):
                # Cast once here, so that the layer and the probe keep the same tensor for backward.
                x_BTI = x_BTI.to(torch.get_autocast_dtype(x_BTI.device.type))
            return self._watch(name, own_forward(x_BTI), x_BTI, self.groups_B)

        return forward

    def start(self, step: int) -> None:
        """Begin a step with empty gradients."""
        self.sequences_K.zero_()
        self.tokens_G.zero_()
        for virtual in self.virtual.values():
            virtual.grad = None

    def begin(self, domains_B: Tensor, tokens_B: Tensor) -> None:
        """Announce a micro-batch. domains_B: each sequence's domain; tokens_B: its predicted tokens; int64, on the host.

        A domain's sequences go to its halves in turn.
        """
        groups = []
        for domain in domains_B.tolist():
            groups.append(domain * self.halves + int(self.sequences_K[domain]) % self.halves)
            self.sequences_K[domain] += 1
        groups_B = torch.tensor(groups)
        self.tokens_G.index_add_(0, groups_B, tokens_B)
        self.groups_B = groups_B.to(self.device, non_blocking=True)

    def finish(self) -> DomainGradients:
        """The Gram matrix of the step."""
        self.groups_B = None
        return domain_gradients(self._gram_of_sums().to("cpu", torch.float64), self.tokens_G.double(), self.halves)

    def _gram_of_sums(self) -> Tensor:
        """⟨S_g, S_h⟩, where S_g is the gradient that group g contributes to that of the step's loss. [G, G]"""
        gram_GG = torch.zeros(self.num_groups, self.num_groups, dtype=torch.float32, device=self.device)
        for virtual in self.virtual.values():
            if virtual.grad is not None:
                grad_GP = virtual.grad.flatten(1)
                gram_GG += grad_GP @ grad_GP.T
        return gram_GG

    def remove(self) -> None:
        """Give the layers the forward back that they had. Probes on the same layers go in reverse order."""
        for name, layer in self.layers.items():
            layer.forward = self._own_forward[name]  # type: ignore[method-assign]


def domain_gradients(gram_GG: Tensor, tokens_G: Tensor, halves: int) -> DomainGradients:
    """From groups to domains, and from a share of the step's loss to a domain's mean loss.

    gram_GG: of the groups' contributions S_g to the gradient of Σ_t ce_t / N. tokens_G: predicted tokens per group, N_g;
    N is their sum. g_i = N/N_i Σ_{g∈i} S_g. With two halves a and b of a domain's sequences, drawn independently,
    E⟨g_a, g_b⟩ = ‖E g_i‖², where E⟨g_i, g_i⟩ holds the variance of g_i besides.
    """
    num_domains = len(tokens_G) // halves
    total = tokens_G.sum()
    blocks_KhKh = gram_GG.view(num_domains, halves, num_domains, halves)
    scale_K = _inverse(tokens_G.view(num_domains, halves).sum(1)) * total
    gram_KK = blocks_KhKh.sum((1, 3)) * scale_K[:, None] * scale_K[None, :]
    if halves == 1:
        return DomainGradients(gram_KK, torch.full_like(scale_K, torch.nan))
    scale_Kh = _inverse(tokens_G.view(num_domains, halves)) * total
    cross_K = blocks_KhKh[:, 0, :, 1].diagonal() * scale_Kh.prod(1)
    return DomainGradients(gram_KK, torch.where(scale_Kh.prod(1) > 0, cross_K, torch.nan))


def _inverse(count: Tensor) -> Tensor:
    """1/count, zero for zero."""
    return torch.where(count > 0, 1 / count.clamp(min=1), 0.0)
