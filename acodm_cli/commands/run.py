"""What `proxy-train` and `apply` share: building a run, driving it, saving it."""

from __future__ import annotations

import math
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import nn

from acodm_cli import __version__
from acodm_cli.alignment.exact import ExactProbe
from acodm_cli.alignment.probe import GradientProbe, select_layers
from acodm_cli.alignment.sketch import SketchProbe, SketchSettings
from acodm_cli.commands.files import RunFiles, input_digests
from acodm_cli.config import RunSettings
from acodm_cli.corpus.corpus import Corpus, cache_folder, cached_bytes, open_corpus
from acodm_cli.corpus.preflight import check_room, domain_uses
from acodm_cli.corpus.readers import Fields
from acodm_cli.display.progress import PreparationDisplay, TrainingDisplay, make_console
from acodm_cli.display.summary import Efficiency, print_efficiency, print_preflight, print_summary, print_title
from acodm_cli.engine.checkpoint import checkpoints, is_intact, load_checkpoint, save_checkpoint
from acodm_cli.engine.device import Compute, choose_compute
from acodm_cli.engine.distributed import Ranks, joined, ranks_asked_for
from acodm_cli.engine.estimate import describe_seconds, flops_per_token, matmul_flops_per_second, peak_flops_per_second
from acodm_cli.engine.memory import MemoryEstimate, estimate_memory, free_memory, peak_memory
from acodm_cli.engine.models import (
    PRESETS,
    build_model,
    checkpoint_activations,
    load_model,
    model_config,
    published_lr,
)
from acodm_cli.engine.trainer import Trainer, TrainSettings
from acodm_cli.errors import AcodmError, Interrupted, ResourceError, UsageError
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.policy import load_policy
from acodm_cli.mixing.acodm.settings import agent_settings
from acodm_cli.mixing.baselines.doremi import DoremiMixer
from acodm_cli.mixing.baselines.replay import ReplayMixer
from acodm_cli.mixing.baselines.static import StaticMixer, natural_weights, uniform_weights
from acodm_cli.mixing.catalog import Task, make_mixer
from acodm_cli.mixing.mixer import Array, Mixer
from acodm_cli.schedule.recorder import Recorder
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.writing import partial_prefix

LONG_RUN_SECONDS = 600
# The logits of a micro-batch, in fp32 with their gradient, take 8 bytes per element.
MAX_LOGITS = {"cpu": 1 << 27, "cuda": 1 << 30}


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """SIGINT, SIGTERM, and SIGUSR1, by which Slurm tells that time is running out: before training they stop at once; in
    training they let the step finish and be saved. A second signal in training stops at once."""

    def __init__(self, resuming: bool) -> None:
        self.resuming = resuming
        self.signal_number: int | None = None
        self.in_training = False

    @contextmanager
    def installed(self) -> Iterator[StopRequest]:
        previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.in_training:
            left = "the run to resume is as it was" if self.resuming else "nothing to resume"
            raise Interrupted(f"interrupted before training began; {left}", number)
        if self.signal_number is not None:
            raise Interrupted("interrupted again: stopped at once; --resume continues from the last checkpoint", number)
        self.signal_number = number


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. inputs: what it reads -> digest of the content."""

    settings: RunSettings
    files: RunFiles
    corpus: Corpus
    prior_K: Array
    mixer: Mixer
    trainer: Trainer
    recorder: Recorder
    compute: Compute
    ranks: Ranks
    parameters: int
    memory: MemoryEstimate
    inputs: dict[str, str]

    def info(self) -> dict[str, Any]:
        """What the schedule file says about its run. Nothing of this machine: neither paths nor times."""
        s, train = self.settings, self.trainer.settings
        tokenizer = self.corpus.tokenizer
        return {
            "acodm_version": __version__,
            "command": s.command,
            "model": s.model if "/" not in s.model else Path(s.model).name,
            "parameters": self.parameters,
            "steps": s.steps,
            "seq_len": s.seq_len,
            "batch": s.batch,
            "token_budget": s.steps * s.tokens_per_step,
            "seed": s.seed,
            "learning_rate": train.lr,
            "dtype": "bf16" if self.compute.dtype == torch.bfloat16 else "fp32",
            "prior": dict(zip(self.corpus.names, self.prior_K.tolist(), strict=True)),
            "mixer": {"name": self.mixer.name, "settings": self.mixer.settings()},
            "alignment": _alignment_info(s) if self.mixer.needs_gram else None,
            "validation_sequences": s.validation_sequences,
            "tokenizer": {
                "name": tokenizer.name,
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
            },
            "corpus": {
                "name": self.corpus.name,
                "fingerprint": self.corpus.fingerprint,
                "tokens": dict(zip(self.corpus.names, map(int, self.corpus.tokens_K), strict=True)),
                "sequences": dict(zip(self.corpus.names, map(int, self.trainer.sampler.sizes_K), strict=True)),
            },
        }


def carry_out(
    settings: RunSettings, files: RunFiles, schedule: Schedule | None, resuming: bool, force: bool, dry: bool
) -> bool:
    """A training command from its settings to its files. Returns whether there is something to tell: on the first rank, and not
    of a dry run.

    schedule: the one to apply. resuming: settings are those of the run to continue.

    Raises:
        AcodmError: as the parts do. What was on disk is still there.
    """
    ranks = ranks_asked_for()
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(resuming).installed())
        stack.enter_context(joined(ranks, settings.device))
        console = make_console(quiet=not ranks.is_first)
        if not (resuming or dry):
            ranks.first(lambda: files.check(settings, force))
        if not dry:
            ranks.first(lambda: stack.enter_context(files.locked()))
        run = prepare(settings, files, schedule, console, ranks)
        print_title(console, run.info(), run.compute.label)
        show_preflight(run, schedule, console)
        _warn_of_small_batch(run, console)
        if dry:
            return False
        if resuming:
            ranks.first(lambda: files.remove_left_over(settings.save_model))
            ranks.first(lambda: files.write_settings(settings))
            resume(run, console)
        else:
            ranks.first(lambda: files.begin(settings))
        say_how_long(run, console)
        efficiency = train(run, stop, console)
        written = finish(run)
        if written is None:
            return False
        print_summary(console, written)
        print_efficiency(console, efficiency)
        return True


def prepare(settings: RunSettings, files: RunFiles, schedule: Schedule | None, console: Console, ranks: Ranks) -> Run:
    """Open the corpus, build model, mixer and trainer; nothing is trained yet.

    Raises:
        UsageError, ScheduleError, ResourceError: what was asked for does not exist or fit.
    """
    if settings.batch % ranks.world_size:
        raise UsageError(
            f"--batch {settings.batch} cannot be shared by {ranks.world_size} ranks; give a multiple of {ranks.world_size}"
        )
    compute = choose_compute(settings.device, settings.dtype, ranks.local_rank if ranks.many else None)
    # An unknown model is found out before minutes of tokenisation.
    model_config(settings.model, 128, settings.seq_len)
    corpus = ranks.in_turn(lambda: _open_corpus(settings, console))
    if schedule is not None:
        corpus = corpus.in_order_of(schedule.domains, settings.map)
        _warn_of_other_tokenizer(schedule, corpus, console)
    corpus.check_sequences(settings.seq_len)
    check_room(corpus, settings.seq_len, settings.batch, settings.steps, settings.max_epochs)
    config = model_config(settings.model, corpus.tokenizer.padded_vocab_size, settings.seq_len)
    config.eos_token_id = corpus.tokenizer.end_of_document
    prior_K = _prior(settings, corpus, schedule)
    mixer = _make_mixer(settings, corpus, prior_K, schedule)
    micro_batch, memory = _plan_memory(settings, config, compute, ranks)
    # A sharded model is built on the host: only its shard has to fit the device.
    sharded = ranks.many and settings.parallel == "fsdp"
    with memory_errors(settings):
        model = build_model(config, settings.seed, torch.device("cpu") if sharded else compute.device)
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        probe = _make_probe(settings, model, len(corpus.names), compute) if mixer.needs_gram else None
        train_settings = _train_settings(settings, micro_batch)
        compiled = settings.compile == "on" or (settings.compile == "auto" and compute.device.type == "cuda")
        reference = _reference_model(mixer, config.vocab_size, compute) if isinstance(mixer, DoremiMixer) else None
        trainer = Trainer(
            model, corpus, mixer, train_settings, compute, probe, ranks, settings.parallel, compiled, reference
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    recorder = Recorder(corpus.names)
    # On one rank: a reference model is large.
    named = ranks.shared(lambda: input_digests(settings))
    inputs = {"the corpus": corpus.fingerprint} | {f"what {name} names": digest for name, digest in named.items()}
    return Run(settings, files, corpus, prior_K, mixer, trainer, recorder, compute, ranks, parameters, memory, inputs)


def _open_corpus(settings: RunSettings, console: Console) -> Corpus:
    with PreparationDisplay(console) as on_progress:
        fields = Fields(settings.text_field, settings.domain_field)
        return open_corpus(
            settings.data, settings.tokenizer, settings.cache_dir, on_progress, fields, settings.domain_tokens
        )


def _warn_of_small_batch(run: Run, console: Console) -> None:
    """Of a domain with one sequence in a batch nothing tells its gradient from that sequence's noise."""
    domains, batch = len(run.corpus.names), run.settings.batch
    if run.mixer.needs_gram and batch < 2 * domains:
        console.print(
            f"warning: --batch {batch} holds fewer than two sequences of most of the {domains} domains: the norms of their gradients, "
            f"which mixer {run.mixer.name} goes by, will often or always be unknown; from --batch {2 * domains} on they are known",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _warn_of_other_tokenizer(schedule: Schedule, corpus: Corpus, console: Console) -> None:
    recorded = schedule.info.get("tokenizer", {})
    if isinstance(recorded, dict) and recorded.get("fingerprint") not in (None, corpus.tokenizer.fingerprint):
        console.print(
            "warning: the schedule was learned with another tokenizer; its weights are shares of that one's tokens",
            highlight=False,
        )


def _prior(settings: RunSettings, corpus: Corpus, schedule: Schedule | None) -> Array:
    if schedule is not None:
        recorded = schedule.info.get("prior")
        if isinstance(recorded, dict) and set(recorded) == set(schedule.domains):
            prior_K = np.array([recorded[name] for name in schedule.domains], dtype=np.float64)
            if np.isfinite(prior_K).all() and (prior_K > 0).all():
                return prior_K / prior_K.sum()
        return schedule.weights_SK[0] / schedule.weights_SK[0].sum()
    if settings.prior == "natural":
        return natural_weights(corpus.upsampled_tokens_K)
    if settings.prior == "given" and corpus.weights:
        return natural_weights(np.array([corpus.weights[name] for name in corpus.names]))
    return uniform_weights(len(corpus.names))


def _make_mixer(settings: RunSettings, corpus: Corpus, prior_K: Array, schedule: Schedule | None) -> Mixer:
    if settings.command == "proxy-train":
        task = Task(corpus.names, corpus.upsampled_tokens_K, prior_K, settings.seed, settings.agent)
        return make_mixer(settings.mixer, settings.mixer_options, task)
    agent = agent_settings(settings.agent, settings.mixer_options)
    if settings.mode == "online":
        initial = load_policy(schedule.policy, schedule.domains, agent) if schedule and schedule.policy else None
        if initial is not None:
            agent = initial.agent_settings
            prior_K = initial.actor.prior_K.double().numpy()
        return AcOdmLearner(prior_K, agent, settings.seed, initial)
    assert schedule is not None
    if settings.mode == "policy":
        assert schedule.policy is not None
        return load_policy(schedule.policy, schedule.domains, agent)
    return ReplayMixer(schedule.timeline, settings.replay_by)


def _reference_model(mixer: DoremiMixer, vocab_size: int, compute: Compute) -> nn.Module:
    """Raises UsageError if it cannot be loaded or has another vocabulary."""
    assert mixer.own.reference is not None
    model = load_model(mixer.own.reference, compute.device)
    if model.config.vocab_size != vocab_size:  # type: ignore[union-attr]
        raise UsageError(
            f"the reference model has a vocabulary of {model.config.vocab_size}, this run one of {vocab_size}; "  # type: ignore[union-attr]
            "train the reference with the same --tokenizer"
        )
    return model


def _train_settings(settings: RunSettings, micro_batch: int) -> TrainSettings:
    return TrainSettings(
        steps=settings.steps,
        batch=settings.batch,
        micro_batch=micro_batch,
        seq_len=settings.seq_len,
        lr=settings.lr or published_lr(settings.model),
        lr_warmup=settings.lr_warmup,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        seed=settings.seed,
        validate_every=settings.resolved_validate_every(),
        validation_sequences=settings.validation_sequences,
        max_epochs=settings.max_epochs,
        skip_nonfinite=settings.skip_nonfinite,
    )


def _plan_memory(settings: RunSettings, config: Any, compute: Compute, ranks: Ranks) -> tuple[int, MemoryEstimate]:
    """The micro-batch and what a run with it takes.

    Not asked for: the fewest equal parts of a rank's share of the batch whose logits stay within bounds and that fit.

    Raises:
        ResourceError: it does not fit; with what would.
    """
    share = settings.batch // ranks.world_size
    shards = ranks.world_size if settings.parallel == "fsdp" else 1

    def estimate(micro_batch: int, checkpointing: bool, of: Any = config, shards: int = shards) -> MemoryEstimate:
        return estimate_memory(of, micro_batch, micro_batch < share, settings.seq_len, compute, checkpointing, shards)

    # Ranks that compute on the CPU of one machine share its memory. All go by the least that any of them has: micro-batches of
    # different sizes would make the ranks of fsdp wait for each other.
    free = -ranks.largest(-free_memory(compute)) // (ranks.world_size if compute.device.type == "cpu" else 1)
    parts = -(-share // max(1, MAX_LOGITS[compute.device.type] // (settings.seq_len * config.vocab_size)))
    micro_batch = settings.micro_batch or -(-share // parts)
    found = estimate(micro_batch, settings.activation_checkpointing)
    while found.total > free and micro_batch > 1 and settings.micro_batch is None:
        micro_batch = -(-micro_batch // 2)
        found = estimate(micro_batch, settings.activation_checkpointing)
    if found.total <= free:
        return micro_batch, found
    message = (
        f"{settings.model} takes about {_gib(found.total)} with --micro-batch {micro_batch}, and {_gib(free)} are free on "
        f"{compute.label}; "
    )
    if estimate(1, settings.activation_checkpointing).total <= free:
        raise ResourceError(message + "use a smaller --micro-batch, or leave it out")
    if estimate(1, True).total <= free:
        raise ResourceError(message + "use --activation-checkpointing")
    many = next((n for n in (2, 4, 8, 16, 32, 64) if estimate(1, True, shards=n).total <= free), None)
    advice = []
    if many is not None and compute.device.type == "cuda":
        advice.append(f"{many} GPUs with --parallel fsdp and --activation-checkpointing")
    smaller = [n for n in PRESETS if n.startswith("pythia")]
    fitting = [
        n for n in smaller if estimate(1, False, model_config(n, config.vocab_size, settings.seq_len), 1).total <= free
    ]
    advice.append(f"a smaller model: {fitting[-1]} fits" if fitting else "a machine with more memory")
    raise ResourceError(message + "use " + ", or ".join(advice))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _make_probe(settings: RunSettings, model: nn.Module, num_domains: int, compute: Compute) -> GradientProbe:
    """Raises ResourceError if the gradients it keeps would not fit."""
    layers = select_layers(model, settings.alignment_layers)
    probe: GradientProbe
    if settings.alignment == "exact":
        probe = ExactProbe(layers, num_domains, True, compute.device)
    else:
        sketch = SketchSettings(settings.alignment_size, settings.alignment_rotation)
        probe = SketchProbe(layers, num_domains, True, settings.seed, sketch, compute.device)
    free = free_memory(compute)
    if (needed := probe.bytes_needed(settings.batch)) > 0.6 * free:
        raise ResourceError(
            f"{settings.alignment} per-domain gradients of these layers take {_gib(needed)}, "
            f"{_gib(free)} are free; use --alignment sketch, fewer --alignment-layers, or a smaller model"
        )
    return probe


def _alignment_info(settings: RunSettings) -> dict[str, Any]:
    info: dict[str, Any] = {"estimator": settings.alignment, "layers": settings.alignment_layers}
    if settings.alignment == "sketch":
        info |= {"size": settings.alignment_size, "rotation": settings.alignment_rotation}
    return info


@contextmanager
def memory_errors(settings: RunSettings) -> Iterator[None]:
    """Turn running out of memory into advice."""
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
        f"not enough memory for {settings.model} with {settings.seq_len} tokens per sequence; lower --micro-batch or "
        "--seq-len, use --dtype bf16, or a smaller --model"
    )


def say_how_long(run: Run, console: Console) -> None:
    """Before a long run on a CPU: how long it will take, and what would be faster."""
    if run.compute.device.type != "cpu":
        return
    left = run.settings.steps - run.trainer.step
    flops = left * run.settings.tokens_per_step * flops_per_token(run.trainer.model, run.settings.seq_len)
    # Small kernels, attention, normalisation and validation: training reaches about half of the matrix peak.
    seconds = 2 * flops / matmul_flops_per_second(run.compute)
    if seconds > LONG_RUN_SECONDS:
        console.print(
            f"on this CPU {left} steps of {run.settings.model} will take about {describe_seconds(seconds)}; faster: a GPU, "
            "a smaller --model, or fewer --steps",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def show_preflight(run: Run, schedule: Schedule | None, console: Console) -> None:
    """What the run will use of its corpus: under the weights that it is known to follow, else under the prior."""
    s, mixer = run.settings, run.mixer
    weights_SK, whose = run.prior_K[None, :], "prior"
    if isinstance(mixer, StaticMixer):
        weights_SK, whose = mixer.weights_K[None, :], mixer.name
    elif isinstance(mixer, ReplayMixer):
        weights_SK, whose = mixer.timeline.weights_SK.astype(np.float64), "schedule's"
    elif schedule is not None and mixer.name == "policy":
        weights_SK, whose = schedule.weights_SK, "schedule's"
    uses = domain_uses(run.corpus, s.seq_len, s.batch, s.steps, weights_SK, s.max_epochs)
    print_preflight(console, uses, whose)
    cache = cache_folder(s.cache_dir)
    console.print(
        f"token cache {cache}: {cached_bytes(cache) / 1e6:,.0f} MB\n"
        f"memory: about {_gib(run.memory.total)}, in micro-batches of {run.trainer.settings.micro_batch}\n",
        highlight=False,
        soft_wrap=True,
        style="dim",
    )


def resume(run: Run, console: Console) -> None:
    """Continue from the newest checkpoint, if there is one.

    Raises:
        AcodmError: none can be read.
        UsageError: corpus, schedule or another input is not what the run began with.
    """
    path = run.ranks.shared(lambda: _newest_intact(run.files.folder, console))
    if path is None:
        console.print("no checkpoint yet; starting from the beginning", highlight=False)
        return
    state = load_checkpoint(path, mapped=run.ranks.many)
    for what, digest in state["inputs"].items():
        if run.inputs.get(what) != digest:
            raise UsageError(
                f"{what} has changed since the run of {run.files.out} began; restore it, or start over with --force"
            )
    run.trainer.load_state_dict(state["trainer"])
    run.recorder.load_state_dict(state["recorder"])
    console.print(f"resumed at step {run.trainer.step} of {run.settings.steps}", highlight=False)


def _newest_intact(folder: Path, console: Console) -> Path | None:
    """None if there is none at all. Raises AcodmError if all are damaged."""
    found = checkpoints(folder)
    for path in reversed(found):
        if is_intact(path):
            return path
        console.print(
            f"warning: checkpoint {path} is damaged (its content is not what was written); trying the one before",
            highlight=False,
            soft_wrap=True,
        )
    if found:
        raise AcodmError(f"no checkpoint in {folder} can be read; start over with --force")
    return None


def train(run: Run, stop: StopRequest, console: Console) -> Efficiency:
    """Train to the end, with checkpoints on the way.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
    """
    every = run.settings.resolved_checkpoint_every()
    display = TrainingDisplay(console, run.corpus.names, run.prior_K, run.settings.steps, run.trainer.step)
    efficiency = Efficiency(
        flops_per_token(run.trainer.model, run.settings.seq_len),
        (peak_flops_per_second(run.compute) or math.nan) * run.ranks.world_size,
        run.settings.tokens_per_step,
    )
    stop.in_training = True
    with display, memory_errors(run.settings):
        for event in run.trainer.steps():
            if run.ranks.is_first:
                run.recorder.add(event)
                display.show(event)
            finished = event.step == run.settings.steps
            signal_number = run.ranks.largest(stop.signal_number or 0)
            # The last checkpoint is for what may still fail: saving the model or the schedule.
            due = finished or signal_number or event.step % every == 0
            efficiency.add(event, save(run) if due else 0.0)
            if signal_number and not finished:
                raise Interrupted(
                    f"stopped at step {event.step} of {run.settings.steps}, state saved; continue with: "
                    f"acodm {run.settings.command} --out {run.files.out} --resume",
                    signal_number,
                )
    efficiency.memory = peak_memory(run.compute)
    return efficiency


def save(run: Run) -> float:
    """A checkpoint. Returns the seconds it took. Raises AcodmError if it cannot be written."""
    started = time.perf_counter()
    state = {
        "trainer": run.trainer.state_dict(),
        "recorder": run.recorder.state_dict(),
        "inputs": run.inputs,
    }
    folder, keep = run.files.folder, run.settings.keep_checkpoints
    run.ranks.first(lambda: save_checkpoint(folder, run.trainer.step, state, keep))
    return time.perf_counter() - started


def finish(run: Run) -> Schedule | None:
    """Write the model (if asked for) and the schedule, then remove the checkpoints. Returns the schedule on the first rank."""
    folder = run.settings.save_model
    weights = run.trainer.model_state() if folder else {}

    def write() -> Schedule:
        if folder:
            save_model(run.trainer.model, weights, run.corpus, Path(folder))
        policy = run.mixer.policy_bytes(run.corpus.names) if isinstance(run.mixer, AcOdmLearner) else None
        schedule = run.recorder.schedule(run.info(), policy)
        schedule.write(run.files.out)
        run.files.remove()
        return schedule

    return run.ranks.first(write)


def save_model(model: nn.Module, weights: dict[str, Any], corpus: Corpus, folder: Path) -> None:
    """A standard Hugging Face checkpoint folder with its tokenizer; complete or not there at all. weights: the whole model's.

    Raises:
        AcodmError: it could not be written.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # it would be drawn into our own display
    partial = Path(tempfile.mkdtemp(prefix=partial_prefix(folder), dir=folder.absolute().parent))
    try:
        model.save_pretrained(partial, state_dict=weights)  # type: ignore[operator]
        end = corpus.tokenizer.backend.id_to_token(corpus.tokenizer.end_of_document)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=corpus.tokenizer.backend, eos_token=end)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        old = folder.with_name(f"{partial_prefix(folder)}old")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AcodmError(f"cannot write the model to {folder}: {reason}; make room and use --resume") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
