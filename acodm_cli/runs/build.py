"""Builds a run that is ready to train out of settings. It prints nothing, and writes nothing but the token cache.

    settings -> corpus, prior, mixer, model (+ gradient probe) -> trainer -> Run

Commands, tests, benchmarks and Python users all build their runs here.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from acodm_cli.alignment.estimators import make_probe
from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.corpus.corpus import Corpus, open_corpus
from acodm_cli.corpus.embedded import EMBEDDED_DOMAINS
from acodm_cli.corpus.importance import likeliest_mixture
from acodm_cli.corpus.preflight import check_room
from acodm_cli.corpus.settings import TargetSettings
from acodm_cli.corpus.store_writer import OnProgress
from acodm_cli.corpus.targets import Target, open_targets, overlap
from acodm_cli.engine.device import Compute, choose_compute, compiler_lacks, compute_deterministically
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.guide import Guide
from acodm_cli.engine.models import (
    PRESETS,
    check_causal,
    checkpoint_activations,
    default_lr,
    model_config,
)
from acodm_cli.engine.settings import Compile
from acodm_cli.engine.trained import load_model, trained_config
from acodm_cli.engine.trainer import Trainer
from acodm_cli.errors import ScheduleError, UsageError
from acodm_cli.mixing.acodm.transfer import make_mapped_mixer
from acodm_cli.mixing.baselines.static import natural_weights, uniform_weights
from acodm_cli.mixing.catalog import make_mixer, mixer_class
from acodm_cli.mixing.domain_map import DomainMap, read_map
from acodm_cli.mixing.mixer import Array, Mixer, Task, with_uniform
from acodm_cli.mixing.objective import Objective
from acodm_cli.mixing.settings import MIXER_OF_MODE
from acodm_cli.runs.guides import guide_texts, guides_of, kept_names, objective_of
from acodm_cli.runs.initial_model import (
    fit_vocabulary,
    initial_model,
    trained_weights,
    warn_of_unused_weights,
    with_own_tokenizer,
)
from acodm_cli.runs.memory_plan import check_probe, memory_errors, plan_memory, with_checkpoint
from acodm_cli.runs.run import Run
from acodm_cli.runs.settings import RunSettings
from acodm_cli.runs.transfer import warn_of_cut, warn_of_differences
from acodm_cli.schedule.library import find_schedule
from acodm_cli.schedule.schedule import Schedule
from acodm_cli.settings import as_given, declared

ALONE = Ranks()
# The settings of guide passes, and which share of the batch a pass has by default.
GUIDE = ("guide", "target_balance", "guide_every", "guide_sequences")
GUIDE_SHARE = 16
# The share of uniform weights in a prior that text decides (`importance`, `natural`), so that every domain is drawn sometimes: of one
# that is never drawn, nothing is learned.
PRIOR_UNIFORM = 0.05
# The share of what must not be forgotten in the prior, where nobody gave one.
KEPT_SHARE = 0.25


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def build_run(
    settings: RunSettings,
    *,
    schedule: Schedule | None = None,
    corpus: Corpus | None = None,
    mixer: Mixer | None = None,
    ranks: Ranks = ALONE,
    on_progress: OnProgress = lambda *_: None,
    warn: Callable[[str], None] = _warn,
) -> Run:
    """Returns a run that is ready to train.

    schedule: the schedule to apply, if it is loaded already. corpus, mixer: taken instead of those that the settings
    name. ranks: the ranks that take part. on_progress: told how far tokenisation is. warn: told what the user should
    know.

    Raises:
        UsageError, ScheduleError, ResourceError: what was asked for does not exist, does not apply, or does not fit.
        AcodmError: the token cache cannot be written.
    """
    if settings.schedule is not None and schedule is None:
        schedule = Schedule.load(settings.schedule)
    if schedule is not None and settings.command != "apply":
        raise UsageError('a schedule is applied with command="apply"; proxy-train takes one by mixer_options')
    settings = with_mode(settings, schedule)
    if settings.batch % ranks.world_size:
        raise UsageError(
            f"--batch {settings.batch} cannot be shared by {ranks.world_size} ranks; give a multiple of {ranks.world_size}"
        )
    compute = choose_compute(settings.device, settings.dtype, ranks.local_rank if ranks.many else None)
    if settings.deterministic:
        compute_deterministically()
    # This finds an unknown model before minutes of tokenisation.
    trained = trained_weights(settings, ranks)
    if trained is None:
        model_config(settings.model, 128, settings.seq_len)
        warn_of_unused_weights(settings, warn)
    else:
        config = trained_config(trained, settings.seq_len)
    if corpus is None:
        _check_data_given(settings, schedule)
        _check_data_options(settings)
        of_corpus = with_own_tokenizer(settings, trained)
        corpus = ranks.in_turn(lambda: open_corpus(of_corpus, on_progress, settings.seq_len))
    for warning in corpus.warnings:
        warn(warning)
    domain_map = None
    if schedule is not None:
        tokens = dict(zip(corpus.names, corpus.upsampled_tokens_K.tolist(), strict=True))
        domain_map = read_map(settings.map, schedule.domains, tokens)
        corpus = corpus.in_order_of(list(domain_map.tokens))
    corpus.check_sequences(settings.seq_len)
    check_room(corpus, settings.seq_len, settings.batch, settings.steps, settings.max_epochs, settings.corpus_share)
    warn_of_cut(settings, corpus, warn)
    if schedule is not None and domain_map is not None:
        warn_of_differences(settings, schedule, corpus, domain_map, trained is None, warn)
    targets = ranks.in_turn(lambda: open_targets(settings, corpus, settings.text_field, settings.seq_len))
    for target in targets:
        if trained_on := overlap(target, corpus):
            warn(
                f"{trained_on} documents of target {target.name} are training documents too; what is reported on it says less"
            )
    kept = kept_names(settings, corpus, targets, warn)
    objective = objective_of(settings, corpus.names, targets, kept)
    if schedule is None:
        settings = _with_prior(settings, corpus, mixer or mixer_class(_mixer_name(settings)), objective)
    importance = _importance(corpus, targets, objective, ranks)
    prior_K = _prior(settings, corpus, schedule, importance, kept)
    if domain_map is not None:
        prior_K = domain_map.divided(prior_K)
    guides = guides_of(settings, corpus.names, objective, mixer or mixer_class(_mixer_name(settings)))
    if mixer is None:
        mixer = _make_mixer(settings, corpus, prior_K, schedule, guides, importance, domain_map)
        _check_applies(settings, mixer, guides, len(targets))
    if kept and not mixer.keeps:
        warn(f"what is to be kept ({len(kept)} parts) is only measured: mixer {mixer.name} does not heed it")
    if mixer.needs_gram and settings.batch < 2 * len(corpus.names):
        warn(_small_batch(settings.batch, len(corpus.names), mixer.name))
    if trained is None:
        config = model_config(settings.model, corpus.tokenizer.padded_vocab_size, settings.seq_len)
    else:
        fit_vocabulary(settings, config, trained, corpus.tokenizer)
    config.eos_token_id = corpus.tokenizer.end_of_document
    training = replace(
        settings,
        lr=settings.lr or default_lr(config, fresh=trained is None),
        compile=_compile(settings, compute, ranks, warn),
    )
    whole_logits = mixer.needs_gram and settings.alignment == "exact"
    micro_batch, memory = plan_memory(training, config, compute, ranks, whole_logits)
    training = replace(training, micro_batch=micro_batch)
    # A sharded model is built on the host, because only its shard has to fit the device.
    sharded = ranks.many and settings.parallel == "fsdp"
    with memory_errors(settings):
        host = torch.device("cpu") if sharded else compute.device
        model = initial_model(settings, config, trained, host)
        if trained is not None or settings.model not in PRESETS:
            check_causal(model, settings.model_name, host)
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        probe, guide = None, None
        if mixer.needs_gram:
            texts = guide_texts(settings, corpus, targets, guides, kept) if mixer.guided else []
            if texts:
                sequences = settings.guide_sequences or settings.batch // GUIDE_SHARE
                guide = Guide(texts, settings.guide_every, sequences, settings.seed, len(guides.kept))
            probe = make_probe(model, len(corpus.names), settings, settings.seed, compute.device, len(texts))
            check_probe(probe, settings.batch, compute)
        memory = with_checkpoint(
            memory, probe, settings.batch, sum(p.numel() for p in model.parameters()), compute, ranks
        )
        reference = _reference(mixer.reference, config.vocab_size, compute) if mixer.reference else None
        reports = [target.report for target in targets]

        def build() -> nn.Module:  # on the host, where the weights are drawn in any case
            return initial_model(settings, config, trained, torch.device("cpu"))

        trainer = Trainer(
            model,
            corpus,
            mixer,
            training,
            compute,
            probe,
            ranks,
            reference,
            reports,
            guide,
            build,
            fresh=trained is None,
        )
    # One rank does this for all, because a reference model is large.
    named = ranks.shared(lambda: input_digests(settings, mixer, trained))
    inputs = {f"domain {domain.name} of the corpus": domain.key for domain in corpus.domains}
    inputs |= {f"target {target.name}": target.key for target in targets}
    inputs |= {"the corpus": corpus.fingerprint} | {f"what {name} names": digest for name, digest in named.items()}
    return Run(settings, corpus, prior_K, trainer, compute, ranks, memory, inputs, warn, targets, objective, domain_map)


def _compile(settings: RunSettings, compute: Compute, ranks: Ranks, warn: Callable[[str], None]) -> Compile:
    """Returns whether to compile: what was asked for, or else on, if there is a GPU and all of its machine can."""
    if settings.compile != "auto" or compute.device.type == "cpu":
        return "on" if settings.compile == "on" else "off"
    lacking = compiler_lacks(compute.device)
    if ranks.largest(lacking is not None):
        warn(
            f"not compiled, so steps take longer: {lacking or 'another machine of this run cannot'}; --compile off says nothing"
        )
        return "off"
    return "on"


# The mixture


def with_mode(settings: RunSettings, schedule: Schedule | None) -> RunSettings:
    """Returns the settings with the mode of `apply` decided.

    Raises:
        UsageError: the mode needs a schedule, and there is none.
        ScheduleError: the mode needs a policy, and the schedule has none.
    """
    if settings.command != "apply":
        return settings
    mode = settings.mode
    if schedule is None:
        if mode not in ("auto", "online"):
            raise UsageError(f"--mode {mode} needs --schedule; without one, --mode online learns from scratch")
        return replace(settings, mode="online")
    if mode == "auto":
        return replace(settings, mode="policy" if schedule.policy is not None else "replay")
    if mode == "policy" and schedule.policy is None:
        raise ScheduleError(f"{settings.schedule or 'the schedule'} holds no policy; use --mode replay")
    return settings


def _check_data_given(settings: RunSettings, schedule: Schedule | None) -> None:
    """Raises ScheduleError if the embedded corpus would be taken for a schedule that was learned on another."""
    if schedule is None or settings.data is not None:
        return
    mapped = settings.map or {}
    parts = [mapped[name].split("+") if name in mapped else [name] for name in schedule.domains]
    names = [name for each in parts for name in each if name]
    if not set(names) <= set(EMBEDDED_DOMAINS):
        learned_on = schedule.run.corpus or "another corpus"
        raise ScheduleError(
            f"--data is not given, and the schedule was learned on {learned_on} with the domains {', '.join(names[:4])}"
            f"{', …' if len(names) > 4 else ''}; give its corpus with --data, and its --tokenizer"
        )


def _check_data_options(settings: RunSettings) -> None:
    """Raises UsageError if the user changed a setting of the corpus that would do nothing."""
    of_text = ("domain_field", "text_field", "eos_token", "domain_tokens", "skip_bad", "follow_links")
    of_hub = ("domain_tokens",)
    changed = settings.changed()
    for name in of_text if settings.data is None else of_hub if Path(settings.data).exists() else ():
        if name in changed:
            option = declared(RunSettings)[name].option
            what = (
                "says how text is read; give the text with --data" if settings.data is None else "is for hub datasets"
            )
            raise UsageError(f"{option} {what}, or leave it out")


def _with_prior(settings: RunSettings, corpus: Corpus, mixer: Mixer | type[Mixer], objective: Objective) -> RunSettings:
    """Returns the settings with `importance` for an agent whom targets guide, unless the user or the manifest gave a prior."""
    guided = bool(objective.targets) and settings.guide == "targets" and mixer.guided and "agent" in mixer.uses
    if guided and settings.prior == "given" and not corpus.weights:
        return replace(settings, prior="importance")
    return settings


def _importance(
    corpus: Corpus, targets: list[Target], objective: Objective, ranks: Ranks
) -> Callable[[], Array] | None:
    """Returns what computes the weights that make the targets' guide text most likely, once. None without targets."""
    texts = [target.guide for target in targets if target.name in objective.targets]
    if not texts:
        return None
    shares_J = objective.shares(len(texts))
    return cache(lambda: ranks.shared(lambda: with_uniform(likeliest_mixture(corpus, texts, shares_J), PRIOR_UNIFORM)))


def _prior(
    settings: RunSettings,
    corpus: Corpus,
    schedule: Schedule | None,
    importance: Callable[[], Array] | None,
    kept: Sequence[str] = (),
) -> Array:
    """Returns the weights to start from, on the simplex; with a schedule, of its domains. [K]"""
    if schedule is not None:
        recorded = schedule.run.prior
        if set(recorded) == set(schedule.domains) and all(weight > 0 for weight in recorded.values()):
            return natural_weights(np.array([recorded[name] for name in schedule.domains]))
        return natural_weights(schedule.weights_SK[0])
    if settings.prior == "importance":
        if importance is None:
            raise UsageError("--prior importance is for targets; name one with --target, or leave it out")
        return importance()
    if settings.prior == "natural":
        return with_uniform(natural_weights(corpus.upsampled_tokens_K), PRIOR_UNIFORM)
    if settings.prior == "given" and corpus.weights:
        return natural_weights(np.array([corpus.weights[name] for name in corpus.names]))
    kept_K = np.isin(corpus.names, kept)
    if settings.prior == "given" and kept_K.any() and not kept_K.all():
        return KEPT_SHARE * kept_K / kept_K.sum() + (1 - KEPT_SHARE) * ~kept_K / (~kept_K).sum()
    return uniform_weights(len(corpus.names))


def _mixer_name(settings: RunSettings) -> str:
    return MIXER_OF_MODE[settings.mode] if settings.command == "apply" else settings.mixer


def _make_mixer(
    settings: RunSettings,
    corpus: Corpus,
    prior_K: Array,
    schedule: Schedule | None,
    objective: Objective,
    importance: Callable[[], Array] | None,
    domain_map: DomainMap | None,
) -> Mixer:
    name, options = _mixer_name(settings), settings.mixer_options
    if settings.command == "apply":
        if schedule is not None and options is not None and "schedule" in options:
            raise UsageError("--mixer-option schedule= does nothing beside --schedule; leave one of them out")
        if name == "replay":
            options = {"by": settings.replay_by} | (options or {})
    tokens_K, seed, preset = corpus.upsampled_tokens_K, settings.seed, settings.agent
    task = Task(
        corpus.names, tokens_K, prior_K, seed, options, preset, schedule, objective, settings.episodes, importance
    )
    if domain_map is None or domain_map.only_renames:
        return make_mixer(name, task)
    return make_mapped_mixer(name, task, domain_map)


def used_settings(mixer: Mixer | type[Mixer]) -> set[str]:
    """Returns the settings of a run, besides the mixer's own, that change what a mixer does."""
    return {*mixer.uses, *(declared(AlignmentSettings) if mixer.needs_gram else ()), *(GUIDE if mixer.guided else ())}


def _check_applies(settings: RunSettings, mixer: Mixer, guides: Objective, num_targets: int) -> None:
    """Raises UsageError if the user changed a setting of the mixture or the targets that would do nothing."""
    used = used_settings(mixer)
    changed = settings.changed()
    for name in declared(TargetSettings):
        there = bool(guides.targets) if name in GUIDE else num_targets > 0 or not name.startswith("target_")
        if name in changed and not there:
            raise UsageError(
                f"{declared(RunSettings)[name].option} is for targets; name one with --target, or leave it out"
            )
    for name in ("prior", "agent", "objective_weights", "episodes", "replay_by", *GUIDE, *declared(AlignmentSettings)):
        if name in changed and name not in used:
            option = declared(RunSettings)[name].option
            raise UsageError(
                f"{option} {as_given(getattr(settings, name))} does nothing with mixer {mixer.name}; leave it out"
            )
    if settings.map and settings.schedule is None:
        raise UsageError("--map is for the domains of a schedule; give one with --schedule, or leave it out")


def _small_batch(batch: int, domains: int, mixer: str) -> str:
    return (
        f"--batch {batch} holds fewer than two sequences of most of the {domains} domains: the norms of their gradients, "
        f"which mixer {mixer} goes by, will often or always be unknown; from --batch {2 * domains} on they are known"
    )


def _reference(folder: str, vocab_size: int, compute: Compute) -> nn.Module:
    """Returns the reference model. Raises UsageError if it cannot be loaded or has another vocabulary."""
    model = load_model(folder, compute.device)
    found: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    if found != vocab_size:
        raise UsageError(
            f"the reference model has a vocabulary of {found}, this run one of {vocab_size}; "
            "train the reference with the same --tokenizer"
        )
    return model


# What must not change before the run is resumed


def input_digests(settings: RunSettings, mixer: Mixer | type[Mixer], trained: Path | None = None) -> dict[str, str]:
    """Returns, by option, a digest of the content that it names: of the schedule, of what else the mixer reads, and of the folder of
    trained weights."""
    options = settings.mixer_options or {}
    named = {"--schedule": settings.schedule} | {name: options.get(name) for name in mixer.files}
    paths = {name: _found(source) for name, source in named.items() if source}
    return {name: _digest(path) for name, path in (paths | ({"--init-from": trained} if trained else {})).items()}


def _found(source: str) -> Path:
    path = Path(source)
    return path if path.exists() and path.suffix != ".run" else find_schedule(source)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for part in sorted(path.glob("*")) if path.is_dir() else [path]:
        if part.suffix in (".safetensors", ".json") or part == path:
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
