"""All mixers by name, made from their options."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from acodm_cli.config import AgentPreset, MixerName, ReplayAlignment
from acodm_cli.errors import UsageError
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.settings import agent_settings
from acodm_cli.mixing.baselines.ado import AdoMixer, AdoSettings
from acodm_cli.mixing.baselines.doge import DogeMixer, DogeSettings
from acodm_cli.mixing.baselines.doremi import DoremiMixer, DoremiSettings
from acodm_cli.mixing.baselines.odm import OdmMixer, OdmSettings
from acodm_cli.mixing.baselines.pike import PikeMixer, PikeSettings
from acodm_cli.mixing.baselines.replay import ReplayMixer
from acodm_cli.mixing.baselines.static import StaticMixer, natural_weights, temperature_weights, uniform_weights
from acodm_cli.mixing.mixer import Array, Mixer
from acodm_cli.mixing.options import with_options
from acodm_cli.schedule.schedule import Schedule

MAX_WEIGHTS_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Task:
    """What a mixer mixes. tokens_K: training tokens per domain, upsampling included. prior_K: weights to start from."""

    domains: list[str]
    tokens_K: Array
    prior_K: Array
    seed: int
    agent: AgentPreset


@dataclass(frozen=True)
class NoSettings:
    pass


@dataclass(frozen=True)
class TemperatureSettings:
    """temperature: T. 1 is natural, large is uniform."""

    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError("temperature must be above 0")


@dataclass(frozen=True)
class FixedSettings:
    """One of: weights, as code:0.3,web:0.7; file, a JSON object of domain names to weights; schedule, whose weights are averaged
    over its steps, or taken from the last one. They need not sum to 1."""

    weights: str | None = None
    file: str | None = None
    schedule: str | None = None
    of: Literal["mean", "last"] = "mean"

    def __post_init__(self) -> None:
        # Without any of them it is the default of no use, from which options are read.
        if sum(source is not None for source in (self.weights, self.file, self.schedule)) > 1:
            raise ValueError("give one of weights=, file= and schedule=")


@dataclass(frozen=True)
class ReplaySettings:
    """schedule: whose weights to follow, mapped on this run by its progress, steps or tokens."""

    schedule: str | None = None
    by: ReplayAlignment = "progress"


Options = dict[str, str] | None


def make_mixer(name: MixerName, options: Options, task: Task) -> Mixer:
    """The mixer of a name.

    Raises:
        UsageError: an option that it does not have, or whose value it refuses.
        ScheduleError: a schedule that cannot be read or is of other domains.
    """
    return _MAKERS[name](options, task)


def _natural(options: Options, task: Task) -> Mixer:
    with_options(NoSettings(), options, "natural")
    return StaticMixer(natural_weights(task.tokens_K), "natural")


def _uniform(options: Options, task: Task) -> Mixer:
    with_options(NoSettings(), options, "uniform")
    return StaticMixer(uniform_weights(len(task.domains)), "uniform")


def _temperature(options: Options, task: Task) -> Mixer:
    settings = with_options(TemperatureSettings(), options, "temperature")
    return StaticMixer(temperature_weights(task.tokens_K, settings.temperature), "temperature")


def _fixed(options: Options, task: Task) -> Mixer:
    settings = with_options(FixedSettings(), options, "fixed")
    if settings.schedule is not None:
        weights_SK = Schedule.load(settings.schedule).in_order_of(task.domains).weights_SK
        return StaticMixer(weights_SK.mean(axis=0) if settings.of == "mean" else weights_SK[-1], "fixed")
    if settings.file is not None:
        given = _weights_of_file(Path(settings.file))
    elif settings.weights is not None:
        given = _weights_of_text(settings.weights)
    else:
        raise UsageError(
            "mixer fixed needs --mixer-option weights=DOMAIN:WEIGHT,…, file=WEIGHTS.json or schedule=FILE.parquet"
        )
    if set(given) != set(task.domains):
        odd = sorted(set(given) ^ set(task.domains))
        raise UsageError(
            f"mixer fixed: the weights and the corpus differ in {', '.join(odd)}; give each domain its weight"
        )
    weights_K = np.array([given[domain] for domain in task.domains], dtype=np.float64)
    if not np.isfinite(weights_K).all() or (weights_K < 0).any() or weights_K.sum() <= 0:
        raise UsageError("mixer fixed: weights must be finite, not negative, and not all zero")
    return StaticMixer(weights_K / weights_K.sum(), "fixed")


def _weights_of_text(text: str) -> dict[str, float]:
    weights = {}
    for part in text.split(","):
        domain, colon, value = part.rpartition(":")
        try:
            weights[domain.strip()] = float(value) if colon else float("nan")
        except ValueError:
            raise UsageError(f"mixer fixed: {part!r} is not DOMAIN:WEIGHT") from None
    return weights


def _weights_of_file(path: Path) -> dict[str, float]:
    try:
        if path.stat().st_size > MAX_WEIGHTS_FILE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_WEIGHTS_FILE_BYTES >> 20} MiB; not a file of weights")
        found = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON; give an object of domain names to weights") from None
    if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
        raise UsageError(f"{path} is not a JSON object of domain names to weights")
    return found


def _replay(options: Options, task: Task) -> Mixer:
    settings = with_options(ReplaySettings(), options, "replay")
    if settings.schedule is None:
        raise UsageError("mixer replay needs --mixer-option schedule=FILE.parquet")
    return ReplayMixer(Schedule.load(settings.schedule).in_order_of(task.domains).timeline, settings.by)


def _odm(options: Options, task: Task) -> Mixer:
    return OdmMixer(task.prior_K, with_options(OdmSettings(), options, "odm"))


def _doge(options: Options, task: Task) -> Mixer:
    return DogeMixer(task.prior_K, with_options(DogeSettings(), options, "doge"))


def _doremi(options: Options, task: Task) -> Mixer:
    settings = with_options(DoremiSettings(), options, "doremi")
    if settings.reference is None:
        raise UsageError(
            "mixer doremi needs --mixer-option reference=FOLDER, a model of the same tokenizer, for example of "
            "acodm proxy-train --mixer natural --save-model FOLDER"
        )
    return DoremiMixer(task.prior_K, settings)


def _pike(options: Options, task: Task) -> Mixer:
    return PikeMixer(task.prior_K, with_options(PikeSettings(), options, "pike"))


def _ado(options: Options, task: Task) -> Mixer:
    return AdoMixer(task.prior_K, with_options(AdoSettings(), options, "ado"))


def _ac_odm(options: Options, task: Task) -> Mixer:
    return AcOdmLearner(task.prior_K, agent_settings(task.agent, options), task.seed)


_MAKERS: dict[MixerName, Callable[[Options, Task], Mixer]] = {
    "ac-odm": _ac_odm,
    "natural": _natural,
    "uniform": _uniform,
    "temperature": _temperature,
    "fixed": _fixed,
    "replay": _replay,
    "odm": _odm,
    "doge": _doge,
    "doremi": _doremi,
    "pike": _pike,
    "ado": _ado,
}
