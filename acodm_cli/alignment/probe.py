"""A gradient probe watches the weight matrices of a model during its ordinary backward pass and gives the Gram matrix
of the domains' gradients.

Shape letters: B sequences, T positions, I and O a layer's input and output features, K domains, G groups, n groups that
are present in a batch. A group is a domain, or one half of a domain's sequences where an unbiased ‖g_i‖² is wanted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MethodType

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from acodm_cli.alignment.block_sketch import BlockSketch
from acodm_cli.errors import UsageError

Layer = nn.Linear | nn.Embedding
LAYER_RULES = ("all", "attention", "mlp", "embedding", "unembedding")


def select_layers(model: nn.Module, rule: str) -> dict[str, Layer]:
    """Selects linear layers and the input embedding of a causal language model, and returns them by name.

    rule: `all`, `attention`, `mlp`, `embedding`, `unembedding`, or several of these and of module-name patterns
    (`*.mlp.*`), separated by commas.

    Raises:
        UsageError: a rule selects nothing.
    """
    embedding = head = None
    if isinstance(model, transformers.PreTrainedModel):
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    known: dict[str, Layer] = {}
    for name, module in model.named_modules():
        # A subclass of nn.Embedding may scale what it looks up: the gradient of its output is not that of its row.
        if isinstance(module, nn.Linear) or (type(module) is nn.Embedding and module is embedding):
            known[name] = module
    selected: set[str] = set()
    for part in (part.strip() for part in rule.split(",")):
        chosen = {name for name, module in known.items() if _matches(name, module, part, embedding, head)}
        if not chosen:
            rules = ", ".join(LAYER_RULES)
            raise UsageError(
                f"--alignment-layers {part!r} selects no layer; use {rules}, or a pattern such as "
                f"'{next(iter(known), '*.mlp.*')}'"
            )
        selected |= chosen
    # A tied weight has one gradient, so either all layers that use it are selected, or none.
    weights = {id(known[name].weight) for name in selected}
    selected |= {name for name, module in known.items() if id(module.weight) in weights}
    return {name: module for name, module in known.items() if name in selected}


def _matches(name: str, module: nn.Module, part: str, embedding: nn.Module | None, head: nn.Module | None) -> bool:
    if part == "all":
        return True
    if part == "embedding":
        return module is embedding
    if part == "unembedding":
        return module is head
    if part in ("attention", "mlp"):
        needle = "attn" if part == "attention" else "mlp"
        return module is not head and needle in name.replace("attention", "attn")
    return fnmatchcase(name, part)


@dataclass(frozen=True)
class DomainGradients:
    """What a step's gradients say about the domains; g_i is the gradient of domain i's mean token loss.

    gram_KK: H_ij = ⟨g_i, g_j⟩ of this batch, with zero rows and columns for absent domains. Its diagonal holds ‖g_i‖²
    and the sampling noise of the batch. self_K: ‖g_i‖² without the noise, NaN where it cannot be had. guide_KJ: ⟨g_i, g_j⟩ with
    the gradients of J guides, which are no part of the batch; NaN where the domain or the guide is absent. All are float64, on
    the host.
    """

    gram_KK: Tensor
    self_K: Tensor
    guide_KJ: Tensor


@dataclass(frozen=True)
class LogitSketch:
    """What a fused loss must do for a probe: sketch the gradient of the logits of some of its tokens. sketch: how. tokens_n: which,
    in groups of two, None for all. edges: the first group is in the tokens from edges[0] to edges[1], and so on; on the host."""

    sketch: BlockSketch
    tokens_n: Tensor | None = None
    edges: NDArray[np.int64] | None = None

    def between(self, first: int, last: int) -> Tensor | None:
        """Which of the tokens between two edges are wanted, counted from the first; None for all."""
        if self.tokens_n is None:
            return None
        assert self.edges is not None
        begin, end = (2 * np.searchsorted(self.edges, (first, last))).tolist()
        return self.tokens_n[begin:end] - first


class LayerWatch(ABC):
    """What one layer needs to know about the step. It is kept on the layer itself, so that torch.compile makes one
    graph for all blocks.

    active: whether the layer is watched in this step. virtual: the virtual copies of its weight. slots_B: the group of
    each sequence. seq_len: the positions per sequence.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.active = False
        self.seq_len = 0
        self.virtual: Tensor
        self.slots_B: Tensor

    @abstractmethod
    def record(self, y_BTO: Tensor, x_BTI: Tensor) -> Tensor:
        """Returns y, and arranges that the backward pass fills the gradient of the virtual copies.

        x_BTI: int64 token ids [B, T] for an embedding."""

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        sequences = (len(self.slots_B), self.seq_len)
        if x.shape[:2] == sequences:
            return self.record(y, x)
        if len(x) != sequences[0] * sequences[1]:
            raise UsageError(
                f"layer {self.name} of this model does not see whole sequences (its input is {tuple(x.shape)}); leave it out "
                "with --alignment-layers, for example --alignment-layers attention,unembedding"
            )
        return self.record(y.unflatten(0, sequences), x.unflatten(0, sequences)).flatten(0, 1)  # merged by the model


def watched_forward(layer: Layer, x: Tensor) -> Tensor:
    """The forward pass of a layer that probes watch."""
    watches: list[LayerWatch] = [watch for watch in layer.acodm_watches if watch.active]  # type: ignore[union-attr]
    if not watches or not torch.is_grad_enabled():
        return type(layer).forward(layer, x)  # type: ignore[arg-type]
    if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
        # The cast is done once here, so that the layer and the probe keep the same tensor for backward.
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y = type(layer).forward(layer, x)  # type: ignore[arg-type]
    for watch in watches:
        y = watch(y, x)
    return y


class GradientProbe(ABC):
    """Computes per-domain gradients of the selected layers' weights.

    Every group of sequences is given its own virtual copy V[g] = 0 of a weight (or of its sketch): the forward pass is
    unchanged, and dL/dV[g] is what group g contributes to the weight's gradient. Autograd then treats it as it does any
    parameter. Layers that share a weight share its virtual copies.

    Use: call `start` for each step and `begin` before each micro-batch's forward pass; run the forward and backward
    passes of Σ_t ce_t / N over the N predicted tokens of the step; call `finish` once. At other times (as in
    validation), the probe does nothing. With data-parallel ranks, every rank starts with the same global batch, begins
    its own rows, and finishes with one all-reduce.

    A step may have a guide pass: sequences that follow the batch's, whose loss is differentiated by the virtual copies
    alone (`leaves`). Each guide has a group of its own, and its gradient meets those of the domains in the Gram matrix.
    """

    # Whether the watched layers must run their own forward pass, the unembedding included.
    reads_whole_gradients: bool

    def __init__(
        self,
        layers: dict[str, Layer],
        num_domains: int,
        halves: bool,
        device: torch.device | None = None,
        num_guides: int = 0,
    ) -> None:
        """halves: whether every domain's sequences are split into two groups, for an unbiased ‖g_i‖². device: where the
        model will compute, None for where its weights are now. num_guides: J, how many guides there may be."""
        assert layers
        assert num_domains > 0
        self.layers = layers
        self.num_domains = num_domains
        self.halves = 2 if halves else 1
        self.num_guides = num_guides
        weights = {name: layer.weight for name, layer in layers.items()}
        self.device = device or next(iter(weights.values())).device
        # The first layer that holds a weight owns its virtual copies.
        first = {id(weight): name for name, weight in reversed(weights.items())}
        self.owner = {name: first[id(weight)] for name, weight in weights.items()}
        # The probe keeps shapes, not weights: a sharded model replaces its parameters.
        self.shapes = {name: _shape(weight) for name, weight in weights.items() if self.owner[name] == name}
        self.watched = set(self.shapes)
        self.virtual: dict[str, Tensor] = {}
        self.batch = 0
        self.capacity = 0
        self.slots_B: Tensor | None = None
        self.watches = {name: self.make_watch(name) for name in layers}
        for name, layer in layers.items():
            if "acodm_watches" not in vars(layer):
                layer.acodm_watches = []  # type: ignore[assignment]
                layer.forward = MethodType(watched_forward, layer)  # type: ignore[method-assign]
            layer.acodm_watches.append(self.watches[name])  # type: ignore[union-attr, operator]

    @abstractmethod
    def virtual_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """The shape of one group's virtual copy of a weight of the given shape."""

    @abstractmethod
    def make_watch(self, name: str) -> LayerWatch:
        """Makes the watch of the layer with this name."""

    def output_sketch(self, head: nn.Module) -> LogitSketch | None:
        """The sketch that a fused loss must apply to the gradient of the logits, None if that is not watched."""
        return None

    def add_output(self, head: nn.Module, delta_np: Tensor, x_BTI: Tensor) -> None:
        """Takes from a fused loss the sketched gradient of the logits, by the tokens that were asked for, and the hidden states of
        all."""
        raise NotImplementedError

    def importance(self, name: str) -> float:
        """One over the probability with which this weight is watched in a step."""
        return 1.0

    def bytes_needed(self, batch: int) -> int:
        """The bytes that the virtual copies' gradients take for a global batch of so many sequences."""
        groups = min(batch, self.num_domains * self.halves) + self.num_guides
        return 4 * groups * sum(math.prod(self.virtual_shape(shape)) for shape in self.shapes.values())

    def start(
        self,
        step: int,
        domains_B: Tensor,
        tokens_B: Tensor,
        guides_R: Tensor | None = None,
        guide_tokens_R: Tensor | None = None,
    ) -> None:
        """Begins a step. domains_B: the domain of each sequence of the global batch. tokens_B: its predicted tokens.
        guides_R, guide_tokens_R: the guide of each sequence of the guide pass, and its predicted tokens; None without one. All
        are int64, on the host. The sequences of a domain go to its halves in turn."""
        self.batch = len(domains_B)
        seen_K = [0] * self.num_domains
        groups = []
        for domain in domains_B.tolist():
            groups.append(domain * self.halves + seen_K[domain] % self.halves)
            seen_K[domain] += 1
        num_groups = self.num_domains * self.halves
        groups_B = torch.tensor(groups)
        if guides_R is not None:
            assert guide_tokens_R is not None
            groups_B = torch.cat([groups_B, guides_R + num_groups])
            tokens_B = torch.cat([tokens_B, guide_tokens_R])
        self.tokens_G = torch.zeros(num_groups + self.num_guides, dtype=torch.int64).index_add_(0, groups_B, tokens_B)
        self.present_n, self._slots_of_batch_B = groups_B.unique(return_inverse=True)
        capacity = min(len(domains_B), num_groups) + self.num_guides
        if capacity != self.capacity:
            self.capacity = capacity
            # One zero is expanded to a leaf of the right shape, which takes no memory.
            zero = torch.zeros((), device=self.device)
            self.virtual = {
                name: zero.expand(capacity, *self.virtual_shape(shape)).requires_grad_()
                for name, shape in self.shapes.items()
            }
        for virtual in self.virtual.values():
            virtual.grad = None
        self.prepare(step)

    def prepare(self, step: int) -> None:  # noqa: B027 - an exact probe looks at everything in every step
        """Chooses what a step looks at, and how."""

    def begin(self, rows: slice | Tensor, seq_len: int) -> None:
        """Announces a micro-batch. rows: its sequences in the global batch. seq_len: the positions of each."""
        self.slots_B = self._slots_of_batch_B[rows].to(self.device, non_blocking=True)
        for name, watch in self.watches.items():
            watch.active = self.owner[name] in self.watched
            watch.virtual, watch.slots_B, watch.seq_len = self.virtual[self.owner[name]], self.slots_B, seq_len

    def leaves(self) -> list[Tensor]:
        """The virtual copies that are watched in this step, by which a guide pass is differentiated."""
        return [self.virtual[name] for name in self.shapes if name in self.watched]

    def finish(self) -> DomainGradients:
        """Ends the step and returns its gradients. It waits for the device."""
        return self.read(self.gram().cpu())

    def gram(self) -> Tensor:
        """Stops watching until the next `begin`, and returns ⟨S_g, S_h⟩ of the batch's groups, on the device. [n, n]"""
        self.slots_B = None
        for watch in self.watches.values():
            watch.active = False
        gram_nn = torch.zeros(self.capacity, self.capacity, device=self.device)
        for name, sum_nP in self._sums().items():
            gram_nn.add_(self.products(sum_nP), alpha=self.importance(name))
        return gram_nn

    def products(self, sum_nP: Tensor) -> Tensor:
        """Returns ⟨S_g, S_h⟩ for one weight. sum_nP: what each group contributed to the gradient of its virtual copy. [n, n]"""
        return sum_nP @ sum_nP.T

    def read(self, gram_nn: Tensor) -> DomainGradients:
        """Returns the gradients of the domains. gram_nn: the result of `gram`, on the host."""
        num_groups, present = len(self.tokens_G), len(self.present_n)
        gram_GG = torch.zeros(num_groups, num_groups, dtype=torch.float64)
        rows_n1 = self.present_n[:, None]
        gram_GG[rows_n1, self.present_n] = gram_nn[:present, :present].double()
        return domain_gradients(gram_GG, self.tokens_G.double(), self.halves, self.num_guides)

    def _sums(self) -> dict[str, Tensor]:
        """Returns, for each watched weight, what each present group contributes to its gradient. [n, P]"""
        grads = {name: self.virtual[name].grad for name in self.shapes}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {name: grad.flatten(1) for name, grad in grads.items() if grad is not None}
        # Every rank watches the same weights, and groups have the same slots on all ranks; a rank may have had no row.
        sums = {
            name: (torch.zeros_like(self.virtual[name]) if grad is None else grad).flatten(1)
            for name, grad in grads.items()
            if name in self.watched
        }
        together_nP = torch.cat(list(sums.values()), dim=1)
        torch.distributed.all_reduce(together_nP)
        return dict(zip(sums, together_nP.split([s.shape[1] for s in sums.values()], dim=1), strict=True))

    def remove(self) -> None:
        """Stops watching for good. Layers that no other probe watches are as they were before."""
        for name, layer in self.layers.items():
            layer.acodm_watches.remove(self.watches[name])  # type: ignore[union-attr, operator]
            if not layer.acodm_watches:
                del layer.acodm_watches, layer.forward


def _shape(weight: Tensor) -> tuple[int, int]:
    rows, columns = weight.shape
    return rows, columns


def domain_gradients(gram_GG: Tensor, tokens_G: Tensor, halves: int, num_guides: int = 0) -> DomainGradients:
    """Goes from groups to domains, and from shares of the step's loss to the mean loss of each domain.

    gram_GG: the Gram matrix of the groups' contributions S_g to the gradient of Σ_t ce_t / N. tokens_G: the predicted
    tokens N_g of each group; the last `num_guides` are guides, and N is the sum of the others. Then g_i = N/N_i Σ_{g∈i} S_g.
    With two halves a and b of a domain's sequences, drawn independently, E⟨g_a, g_b⟩ = ‖E g_i‖², whereas E⟨g_i, g_i⟩ also
    holds the variance of g_i.
    """
    of_batch = len(tokens_G) - num_guides
    guide_GJ, tokens_J = gram_GG[:of_batch, of_batch:], tokens_G[of_batch:]
    gram_GG, tokens_G = gram_GG[:of_batch, :of_batch], tokens_G[:of_batch]
    num_domains = len(tokens_G) // halves
    total = tokens_G.sum()
    blocks_KhKh = gram_GG.reshape(num_domains, halves, num_domains, halves)
    scale_K = _inverse(tokens_G.view(num_domains, halves).sum(1)) * total
    scale_KJ = scale_K[:, None] * _inverse(tokens_J) * total
    guide_KJ = guide_GJ.reshape(num_domains, halves, num_guides).sum(1) * scale_KJ
    guide_KJ = torch.where(scale_KJ > 0, guide_KJ, torch.nan)
    gram_KK = blocks_KhKh.sum((1, 3)) * scale_K[:, None] * scale_K[None, :]
    if halves == 1:
        return DomainGradients(gram_KK, torch.full_like(scale_K, torch.nan), guide_KJ)
    scale_Kh = _inverse(tokens_G.view(num_domains, halves)) * total
    cross_K = blocks_KhKh[:, 0, :, 1].diagonal() * scale_Kh.prod(1)
    return DomainGradients(gram_KK, torch.where(scale_Kh.prod(1) > 0, cross_K, torch.nan), guide_KJ)


def _inverse(count: Tensor) -> Tensor:
    """Returns 1/count, and 0 where count is 0."""
    return torch.where(count > 0, 1 / count.clamp(min=1), 0.0)
