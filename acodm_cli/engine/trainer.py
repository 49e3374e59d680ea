"""The training loop: a causal language model on mixed-domain batches, as a generator of steps.

    weights <- mixer <- observation          (what to draw)
    batch   <- sampler(weights)              (exact counts per domain)
    model   <- forward, backward, AdamW      (the probe watches the one backward pass)
    mixer   <- feedback                      (losses, Gram matrix, norms)

Of mixtures, the loop knows only the Mixer protocol. It prints nothing and writes nothing: callers see StepEvents and
take `state_dict()` when they want to save.

Shape letters: B sequences, T positions, U = T + 1 tokens, K domains, L depths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from acodm_cli.alignment.gram import interaction_energy, self_magnitude
from acodm_cli.alignment.probe import GradientProbe
from acodm_cli.corpus.corpus import Corpus
from acodm_cli.corpus.held_out import HeldOutText, validation_texts, validation_windows
from acodm_cli.corpus.sampler import Batch, Sampler
from acodm_cli.engine.device import Compute
from acodm_cli.engine.distributed import Ranks, gradients_stay_here, parallelised, reshard, whole
from acodm_cli.engine.evaluate import Measured, measure, plan_validation, sequence_losses
from acodm_cli.engine.guide import Guide, GuideBatch
from acodm_cli.engine.loss import IGNORED, CausalLoss
from acodm_cli.engine.models import attend_causally, has_dropout, transformer_blocks
from acodm_cli.engine.norms import NormReader
from acodm_cli.engine.optimizer import learning_rate, make_optimizer
from acodm_cli.engine.settings import TrainSettings
from acodm_cli.errors import AcodmError
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report
from acodm_cli.schedule.measures import in_single

ALONE = Ranks()
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class StepEvent:
    """One finished step. step: its number in its episode, from 1. episode: the number of that, from 1. run_step: the number of
    steps of all episodes so far. tokens: the predicted tokens of the episode so far, this step included. weights_K:
    the executed weights. losses_K: in nats, NaN for a domain that was not drawn. validation: what was measured on held-out
    text after the step, None if not due. interaction_energy, self_energy: NaN without a Gram matrix. seconds_of: the wall time of each
    part: batch, model, mixer, validation. report: what the mixer says, on the first rank only."""

    step: int
    episode: int
    run_step: int
    tokens: int
    weights_K: Array
    samples_K: NDArray[np.int64]
    losses_K: Array
    train_loss: float
    learning_rate: float
    gradient_norm: float
    interaction_energy: float
    self_energy: float
    report: Report
    validation: Measured | None
    seconds_of: dict[str, float]

    @property
    def validation_K(self) -> Array | None:
        """The validation losses of the domains in nats, None if validation was not due. [K]"""
        return None if self.validation is None else self.validation.losses_J[: len(self.weights_K)]

    @property
    def seconds(self) -> float:
        """The wall time of the step without its validation."""
        return sum(seconds for part, seconds in self.seconds_of.items() if part != "validation")


class Trainer:
    """Trains a model on batches of a corpus, whose mixture a mixer decides."""

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        mixer: Mixer,
        settings: TrainSettings,
        compute: Compute,
        probe: GradientProbe | None = None,
        ranks: Ranks = ALONE,
        reference: nn.Module | None = None,
        targets: Sequence[HeldOutText] = (),
        guide: Guide | None = None,
        build: Callable[[], nn.Module] | None = None,
        fresh: bool = True,
    ) -> None:
        """settings: must have a learning rate, and say whether to compile. probe: watches the model's layers; given if the mixer needs a Gram
        matrix. reference: the model whose losses the mixer compares with; given if the mixer needs one. targets: the text of
        targets on which losses are reported. guide: draws the sequences of guide passes, None for none. build: makes the model
        as it is now once more, on the host; given if there is more than one episode. fresh: whether the model has not learned
        anything yet; otherwise its losses are measured before the first step."""
        assert (probe is not None) == mixer.needs_gram
        assert (reference is not None) == (mixer.reference is not None)
        assert settings.batch % ranks.world_size == 0
        assert settings.compile != "auto"
        self.model = model
        on_gpu, blocks = compute.device.type == "cuda", transformer_blocks(model)
        if on_gpu:
            for each in (model, reference):
                if each is not None:
                    attend_causally(each, settings.seq_len)
        self.compiled = settings.compile == "on"
        backend = "inductor" if self.compiled and on_gpu else None
        loss = CausalLoss(model, backend)
        if self.compiled:
            # Each block is compiled by itself: one small graph serves all of them, and it is ready in seconds. DDP must not split it
            # where its buckets end.
            torch._dynamo.config.optimize_ddp = False
            for block in blocks:
                block.compile()
        self.own_loss = loss  # of this rank: its gradients go nowhere
        self.drops = has_dropout(model)
        self.loss = parallelised(loss, blocks, settings.parallel, ranks, compute)
        self.corpus = corpus
        self.mixer = mixer
        self.settings = settings
        self.compute = compute
        self.ranks = ranks
        self.probe = probe
        self.reference = CausalLoss(reference.eval().requires_grad_(False), backend) if reference else None
        windows = validation_windows(corpus, settings.seq_len)
        self.validate_every, rows = plan_validation(settings, [*map(len, windows)], [*map(len, targets)])
        of_targets = rows[len(windows) :]
        self.texts = validation_texts(corpus, windows, rows[: len(windows)])
        self.texts += [
            text.part(count, corpus.tokenizer.token_bytes_V) for text, count in zip(targets, of_targets, strict=True)
        ]
        self.guide = guide
        self.build = build
        self.fresh = fresh
        # What the texts' losses were before the first step of a model that is not fresh.
        self.before: Measured | None = None
        self.episode = 1
        self.skipped = 0
        self._begin()

    def _begin(self) -> None:
        """Begins an episode with the model as it is."""
        s, ranks = self.settings, self.ranks
        assert s.lr is not None
        self.optimizer = make_optimizer(self.model, s.lr, s.weight_decay)
        self.sampler = Sampler(
            self.corpus, s.batch, s.seq_len, s.seed, s.max_epochs, ranks.rank, ranks.world_size, s.corpus_share
        )
        # A batch that was drawn ahead, with its weights, and the sampler's state before it.
        self._drawn_ahead: tuple[Array, Batch] | None = None
        self._sampled: dict[str, Any] = {}
        self.norms = NormReader(self.model, self.mixer.depths)
        self.step = 0
        self.observation = self._first_observation()

    def restart(self) -> None:
        """Begins the next episode: all but the mixer is as it was before the first step. Every rank must call this."""
        assert self.build is not None
        reshard(self.loss)
        set_model_state_dict(self.model, self.build().state_dict(), options=_WHOLE)
        self.episode += 1
        self._begin()

    @property
    def run_step(self) -> int:
        """The number of steps of all episodes so far."""
        return (self.episode - 1) * self.settings.steps + self.step

    def steps(self) -> Iterator[StepEvent]:
        """Trains from the current step to the last of the episode, and yields an event after each.

        Raises:
            AcodmError: a loss or gradient is not finite and may not be skipped. The optimiser has not been stepped.
        """
        if not self.fresh and self.before is None:
            self._measure_before()
        while self.step < self.settings.steps:
            clock = Clock()
            weights_K, batch = self._drawn_ahead or self._draw(self.observation, clock)
            self._drawn_ahead = None
            guide = self.guide.draw(self.step) if self.guide else None
            queued = self._forward_backward(batch, guide)
            lr, queued["gradient_norm"] = self._optimizer_step(queued["sums_K"])
            queued["norms_L"], queued["updates_L"] = self.norms.read()
            clock.lap("model")
            if self.ranks.is_first:
                self.mixer.learn()  # host work, while a GPU is still busy with what was queued
            clock.lap("mixer")
            self._draw_ahead(clock)
            found = on_host(queued)  # the step's one wait for the device
            clock.lap("model")
            losses_K, train_loss = self._mean_losses(batch, found["sums_K"])
            gradient_norm = float(found["gradient_norm"])
            finite = math.isfinite(train_loss) and math.isfinite(gradient_norm)
            if not finite:
                self._skip_or_stop(losses_K, gradient_norm)
            gradients = self.probe.read(found["gram_nn"]) if self.probe and finite else None
            looked = gradients is not None and "guide_losses_J" in found
            gram_KK = gradients.gram_KK.numpy() if gradients else None
            self_K = gradients.self_K.numpy() if gradients else None
            self.step += 1
            previous = self.observation
            self.observation = self._next_observation(batch, losses_K, found["norms_L"], found["updates_L"])
            report = Report(phase="skipped: not finite")
            if finite and self.ranks.is_first:
                samples_K = batch.samples_K.astype(float)
                excess_K = self._means(batch, found["excess_K"]) if self.reference else None
                report = self.mixer.observe(
                    Feedback(
                        previous,
                        weights_K,
                        samples_K,
                        gram_KK,
                        self_K,
                        excess_K,
                        self.observation,
                        gradients.guide_KJ.numpy() if gradients and looked else None,
                        found["guide_losses_J"].numpy() if looked else None,
                        guide.before_J if guide and looked else None,
                    )
                )
            clock.lap("mixer")
            validation = self._validate_if_due()
            clock.lap("validation")
            yield StepEvent(
                step=self.step,
                episode=self.episode,
                run_step=self.run_step,
                tokens=self.observation.tokens,
                weights_K=weights_K,
                samples_K=batch.samples_K,
                losses_K=losses_K,
                train_loss=train_loss,
                learning_rate=lr,
                gradient_norm=gradient_norm,
                interaction_energy=math.nan if gram_KK is None else interaction_energy(gram_KK, weights_K),
                self_energy=math.nan if self_K is None else self_magnitude(self_K, weights_K),
                report=report,
                validation=validation,
                seconds_of=clock.seconds_of,
            )

    def _measure_before(self) -> None:
        """Measures what a model that is not fresh knows already."""
        self.before = self.validate()
        if self.guide and self.guide.kept:
            self.guide.before = sequence_losses(self.loss, self.guide.kept, self._micro_batch, self.compute, self.ranks)
        self.observation = self._first_observation()

    def _draw(self, observation: Observation, clock: Clock) -> tuple[Array, Batch]:
        """Returns the weights and the batch of the step that is observed."""
        weights_K = self._decide(observation)
        clock.lap("mixer")
        batch = self.sampler.draw(weights_K)
        batch = replace(batch, tokens_BU=self.compute.pinned(batch.tokens_BU))
        clock.lap("batch")
        return weights_K, batch

    def _draw_ahead(self, clock: Clock) -> None:
        """Draws the next step's batch while a GPU is still busy with this step, if its weights do not depend on this step."""
        if self.mixer.open_loop and self.step + 1 < self.settings.steps:
            self._sampled = self.sampler.state_dict()
            tokens = self.observation.tokens + self.settings.tokens_per_step
            self._drawn_ahead = self._draw(replace(self.observation, step=self.step + 1, tokens=tokens), clock)

    def _decide(self, observation: Observation) -> Array:
        """Returns the weights of a step, the first rank's on all ranks. [K]

        They have float32 values that sum to 1, as they are recorded, so that a replay of the record draws the same batches."""
        weights_K = np.zeros(len(self.corpus.names))
        if self.ranks.is_first:
            decided_K = self.mixer.weights(observation)
            on_simplex = (decided_K >= 0).all() and abs(decided_K.sum() - 1) < 1e-4
            assert on_simplex, f"mixer {self.mixer.name} gave weights that are not on the simplex: {decided_K}"
            weights_K = self.sampler.executed(decided_K)
        return in_single(self.ranks.from_first(weights_K)).astype(np.float64)

    def _forward_backward(self, batch: Batch, guide: GuideBatch | None) -> dict[str, Tensor]:
        """Accumulates the gradient of the batch's mean token loss over all ranks, without waiting for the device.

        Returns sums_K, the sum of token losses per domain; gram_nn, if there is a probe; excess_K, if there is a reference: the
        sum per domain of what token losses exceed the reference's by; and guide_losses_J, if the step has a guide pass.
        """
        # Dropout and whatever else is random in a model depends on seed, step and rank only, so nothing of it needs to
        # be saved.
        torch.manual_seed(((self.settings.seed * 1_000_003 + self.step) * 65_536 + self.ranks.rank) % 2**63)
        scale = 1 / self.settings.tokens_per_step
        sums_K = torch.zeros(len(batch.samples_K), dtype=torch.float64, device=self.compute.device)
        excess_K = torch.zeros_like(sums_K)
        if self.probe:
            tokens_B = torch.full_like(batch.domains_B, self.settings.seq_len)
            of_guide = (guide.guides_R, guide.counted_R) if guide else ()
            self.probe.start(self.step, batch.domains_B, tokens_B, *of_guide)
        mine_B = torch.arange(len(batch.domains_B))[batch.rows]
        for rows, counted, more in self._micro_batches(len(mine_B)):
            tokens_BU = self._to_device(batch.tokens_BU[rows])
            labels_BT = tokens_BU[:, 1:]
            if counted < len(tokens_BU):
                labels_BT = labels_BT.clone()
                labels_BT[counted:] = IGNORED
            if self.probe:
                self.probe.begin(mine_B[rows], self.settings.seq_len)
            with gradients_stay_here(self.loss, stay=more and self.settings.fsdp_accumulate == "whole"):
                with self.compute.autocast():
                    total, losses_BT = self.loss(tokens_BU[:, :-1], labels_BT, scale, self.probe)
                total.backward()
            domains_B = self._to_device(batch.domains_B[mine_B[rows]])
            sums_K.index_add_(0, domains_B, losses_BT.double().sum(dim=1))
            if self.reference:
                with torch.no_grad(), self.compute.autocast():
                    _, reference_BT = self.reference(tokens_BU[:, :-1], labels_BT, scale, None)
                above_BT = (losses_BT.detach() - reference_BT).clamp(min=0)
                excess_K.index_add_(0, domains_B, above_BT.double().sum(dim=1))
        queued = {"sums_K": self.ranks.sum_(sums_K)}
        if self.reference:
            queued["excess_K"] = self.ranks.sum_(excess_K)
        if guide:
            queued["guide_losses_J"] = self._guide_pass(guide, len(batch.domains_B), scale)
        if self.probe:
            queued["gram_nn"] = self.probe.gram()
        return queued

    def _micro_batches(self, count: int) -> Iterator[tuple[slice | Tensor, int, bool]]:
        """Yields, for each micro-batch of `count` rows, which they are, how many of them count, and whether more follow.

        Compiled blocks see micro-batches of one shape, for which there is one graph: the last one is filled up with the first row."""
        micro = self._micro_batch
        for first in range(0, count, micro):
            last = min(first + micro, count)
            rows: slice | Tensor = slice(first, last)
            if self.compiled and last - first < micro < count:
                rows = torch.arange(first, first + micro)
                rows[last - first :] = 0
            yield rows, last - first, last < count

    def _guide_pass(self, guide: GuideBatch, batch: int, scale: float) -> Tensor:
        """Shows the probe the gradients of the targets' guide text. No gradient of a parameter is computed. Returns the mean
        loss of each target in nats. [J]

        batch: the sequences of the global batch, which the guide's follow. scale: of the losses, as in the batch."""
        assert self.probe is not None
        assert self.guide is not None
        if self.drops:
            self.own_loss.eval()  # as in what the losses are compared with
        sums_J = torch.zeros(len(self.guide.texts), dtype=torch.float64, device=self.compute.device)
        counts_J = sums_J.new_zeros(sums_J.shape, device="cpu").index_add_(0, guide.guides_R, guide.counted_R.double())
        micro, ranks = self._micro_batch, self.ranks
        each = -(-len(guide) // ranks.world_size)
        size = -(-each // -(-each // micro))
        for start in range(0, each, size):
            rows = ranks.rank * each + start + torch.arange(size)
            # As in validation, what is missing in the last part or on the last rank is filled up with the first sequence, and not counted.
            beyond = rows >= min((ranks.rank + 1) * each, len(guide))
            rows[beyond] = 0
            labels_RT = guide.labels_RT[rows]
            labels_RT[beyond] = IGNORED
            self.probe.begin(batch + rows, self.settings.seq_len)
            with self.compute.autocast():
                total, losses_RT = self.own_loss(
                    self._to_device(guide.tokens_RU[rows, :-1]),
                    self._to_device(labels_RT),
                    scale,
                    self.probe,
                    of_weights=False,
                )
            torch.autograd.backward(total, inputs=self.probe.leaves())
            sums_J.index_add_(0, self._to_device(guide.guides_R[rows]), losses_RT.double().sum(dim=1))
        if self.drops:
            self.own_loss.train()
        return self.ranks.sum_(sums_J) / self._to_device(counts_J)

    def _mean_losses(self, batch: Batch, sums_K: Tensor) -> tuple[Array, float]:
        """Returns (mean loss per domain, NaN where absent [K]; mean loss of the batch), in nats."""
        return self._means(batch, sums_K), float(sums_K.sum() / self.settings.tokens_per_step)

    def _means(self, batch: Batch, sums_K: Tensor) -> Array:
        """Divides sums over each domain's tokens by their number; NaN where a domain has none. [K]"""
        tokens_K = batch.samples_K * self.settings.seq_len
        return np.divide(sums_K.numpy(), tokens_K, out=np.full(len(tokens_K), math.nan), where=tokens_K > 0)

    @property
    def _micro_batch(self) -> int:
        return self.settings.micro_batch or self.settings.batch

    def _to_device(self, tensor: Tensor) -> Tensor:
        return self.compute.sent(tensor)

    def _optimizer_step(self, sums_K: Tensor) -> tuple[float, Tensor]:
        """Steps the optimiser, which does nothing if a loss or the norm of the gradient is not finite.

        Returns (learning rate, norm of the gradient before clipping)."""
        settings = self.settings
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)).detach()
        lr = self.observation.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Fused AdamW reads this flag on the device, as it does for a gradient scaler, so the host need not wait for it.
        finite = norm.isfinite() & sums_K.isfinite().all()
        self.optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return lr, norm

    def _skip_or_stop(self, losses_K: Array, gradient_norm: float) -> None:
        """Counts a step that was not finite and changed nothing. Raises AcodmError if there are more than allowed."""
        self.skipped += 1
        if self.skipped <= self.settings.skip_nonfinite:
            return
        losses = ", ".join(f"{name} {loss:.3g}" for name, loss in zip(self.corpus.names, losses_K, strict=True))
        raise AcodmError(
            f"the loss or gradient of step {self.step + 1} is not finite (losses: {losses}; gradient norm "
            f"{gradient_norm:.3g}); pass over it with --resume --skip-nonfinite, or start over with --force and a lower --lr"
        )

    def _validate_if_due(self) -> Measured | None:
        """Validates after the first step (where the run starts from), at intervals, and after the last step."""
        if self.step != 1 and self.step % self.validate_every and self.step != self.settings.steps:
            return None
        return self.validate()

    def validate(self) -> Measured:
        """Returns what the model's losses on the held-out texts are: those of the domains, then those of targets."""
        return self.measure(self.texts)

    def measure(self, texts: Sequence[HeldOutText]) -> Measured:
        """Returns what the model's losses on some texts are. Every rank must call it."""
        return measure(self.loss, texts, self._micro_batch, self.compute, self.ranks)

    # Observations

    def _learning_rate(self) -> float:
        return learning_rate(self.step, self.settings)

    def _first_observation(self) -> Observation:
        """What the mixer sees before the first batch. Every loss is that of a uniform prediction, ln(vocabulary), or, of a model that
        is not fresh, the one on held-out text."""
        num_domains = len(self.corpus.names)
        max_loss = math.log(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        losses_K = np.full(num_domains, max_loss) if self.before is None else self.before.losses_J[:num_domains]
        initial_L = self.norms.initial_L.double().cpu().numpy()
        return Observation(
            step=0,
            total_steps=self.settings.steps,
            tokens=0,
            total_tokens=self.settings.steps * self.settings.tokens_per_step,
            learning_rate=self._learning_rate(),
            samples_K=np.zeros(num_domains),
            losses_K=losses_K,
            previous_losses_K=losses_K,
            max_loss=max_loss,
            weight_norms_L=initial_L,
            initial_norms_L=initial_L,
            update_norms_L=np.zeros_like(initial_L),
        )

    def _next_observation(self, batch: Batch, losses_K: Array, norms_L: Tensor, updates_L: Tensor) -> Observation:
        last = self.observation
        return Observation(
            step=self.step,
            total_steps=last.total_steps,
            tokens=last.tokens + self.settings.tokens_per_step,
            total_tokens=last.total_tokens,
            learning_rate=self._learning_rate(),
            samples_K=batch.samples_K.astype(np.float64),
            losses_K=np.where(np.isfinite(losses_K), losses_K, last.losses_K),
            previous_losses_K=last.losses_K,
            max_loss=last.max_loss,
            weight_norms_L=norms_L.numpy(),
            initial_norms_L=last.initial_norms_L,
            update_norms_L=updates_L.numpy(),
        )

    # State

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the coming steps depend on, as plain values and tensors, which are those of the run itself:
        on its device, spread over the ranks if they are in training, and changed by the next step (see `HostCopy`)."""
        fields = vars(self.observation)
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "mixer": self.mixer.state_dict(),
            "sampler": self._sampled if self._drawn_ahead else self.sampler.state_dict(),
            "observation": {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in fields.items()},
            "episode": self.episode,
            "skipped": self.skipped,
            "before": self.before and {name: torch.from_numpy(values) for name, values in vars(self.before).items()},
            "guide_before": [torch.from_numpy(losses_N) for losses_N in self.guide.before] if self.guide else [],
        }

    def model_state(self) -> dict[str, Any]:
        """Returns the state of the model alone, with whole tensors on the host. Every rank must call it; only the first rank's result
        is of use."""
        return get_model_state_dict(self.model, options=_WHOLE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state, which may be of any number of ranks. Every rank must call it, and takes its share."""
        set_model_state_dict(self.model, state["model"], options=_WHOLE)
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"], options=_WHOLE)
        self.mixer.load_state_dict(state["mixer"])
        self.sampler.load_state_dict(state["sampler"])
        self._drawn_ahead = None
        fields: dict[str, Any] = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in state["observation"].items()}
        self.observation = Observation(**fields)
        self.norms.restore(torch.from_numpy(self.observation.initial_norms_L))
        self.step = self.observation.step
        self.episode = state["episode"]
        self.skipped = state["skipped"]
        if state["before"] is not None:
            self.before = Measured(**{name: values.numpy() for name, values in state["before"].items()})
        if self.guide:
            self.guide.before = [losses_N.numpy() for losses_N in state["guide_before"]]


class Clock:
    """Measures the wall time of a step's parts, as the host sees it: its wait for a GPU falls into the part `model`."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds_of: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Adds the time since the last lap to a part."""
        now = time.perf_counter()
        self.seconds_of[part] = self.seconds_of.get(part, 0.0) + now - self.last
        self.last = now


def on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves tensors to the host in one copy, as float64."""
    together = torch.cat([tensor.double().flatten() for tensor in tensors.values()]).cpu()
    parts = together.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}
