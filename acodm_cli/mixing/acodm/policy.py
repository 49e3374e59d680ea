"""The frozen policy: how it is stored in a schedule file, and the mixer that queries it for a target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from acodm_cli.errors import ScheduleError, UsageError
from acodm_cli.mixing.acodm.agent import Agent
from acodm_cli.mixing.acodm.networks import Actor
from acodm_cli.mixing.acodm.settings import AgentSettings, agent_settings
from acodm_cli.mixing.acodm.state import RunningNormalizer, encode_state, relative_depths, state_size
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report, Task
from acodm_cli.mixing.options import with_options
from acodm_cli.schedule.schedule import Schedule

POLICY_VERSION = 1
MAX_POLICY_BYTES = 256 * 2**20

# The settings that shape the actor's output; the others matter only while it learns.
_ACTOR_SETTINGS = ("hidden", "layers", "depths", "logit_bound", "floor_share", "smoothing")


def dump_policy(agent: Agent, domains: list[str]) -> bytes:
    """Returns the actor, its normalisation and what is needed to rebuild it, as safetensors."""
    header = {
        "policy_version": POLICY_VERSION,
        "domains": domains,
        "actor": {name: getattr(agent.settings, name) for name in _ACTOR_SETTINGS},
    }
    tensors = {f"actor.{name}": tensor.contiguous() for name, tensor in agent.actor.state_dict().items()}
    tensors |= {f"normalizer.{name}": tensor for name, tensor in agent.normalizer.tensors().items()}
    return save(tensors, metadata={"acodm": json.dumps(header)})


def _header(data: bytes) -> dict[str, Any]:
    """Returns the acodm header from the safetensors header, which is JSON after an 8-byte length."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, 2**20):
        raise ScheduleError("the schedule's policy has no readable header; use --mode replay")
    try:
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["acodm"])
        if not isinstance(header, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ScheduleError("the schedule's policy has no readable header; use --mode replay") from None
    return header


def load_policy(data: bytes, domains: list[str], base: AgentSettings) -> FrozenPolicy:
    """Returns the policy that is stored in the bytes. base: gives the settings that matter only while learning.

    Raises:
        ScheduleError: it is not a policy of this version, is for other domains, or has tensors of the wrong shape.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise ScheduleError(f"the schedule's policy is larger than {MAX_POLICY_BYTES >> 20} MiB; use --mode replay")
    header = _header(data)
    if header.get("policy_version") != POLICY_VERSION:
        raise ScheduleError(
            f"the schedule's policy has version {header.get('policy_version')!r}, this acodm reads version "
            f"{POLICY_VERSION}; use --mode replay, or update acodm"
        )
    if header.get("domains") != domains:
        raise ScheduleError("the schedule's policy is for other domains than its weights; use --mode replay")
    settings = _actor_settings(header.get("actor"), base)
    try:
        tensors = load(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ScheduleError(f"the schedule's policy is damaged ({error}); use --mode replay") from None
    size = state_size(len(domains), settings.depths)
    prior_K = torch.full((len(domains),), 1.0 / len(domains))
    with torch.device("meta"):
        actor = Actor(size, prior_K.to("meta"), settings)
    normalizer = RunningNormalizer(size)
    expected = {f"actor.{name}": tensor for name, tensor in actor.state_dict().items()}
    expected |= {f"normalizer.{name}": tensor for name, tensor in normalizer.tensors().items()}
    _check_tensors(tensors, expected)
    prior = tensors["actor.prior_K"]
    if not (prior > 0).all() or abs(float(prior.sum()) - 1) > 1e-4:
        raise ScheduleError("the schedule's policy has a prior that is not on the simplex; use --mode replay")
    actor.load_state_dict(
        {name.removeprefix("actor."): tensor for name, tensor in tensors.items() if name.startswith("actor.")},
        assign=True,
    )
    normalizer.load({name: tensors[f"normalizer.{name}"] for name in normalizer.tensors()})
    return FrozenPolicy(actor.requires_grad_(False), normalizer, settings)


def _actor_settings(value: Any, base: AgentSettings) -> AgentSettings:
    try:
        known = isinstance(value, dict) and set(value) == set(_ACTOR_SETTINGS)
        if not known or not all(type(value[name]) is int for name in ("hidden", "layers", "depths")):
            raise ValueError
        return AgentSettings(**(base.to_json() | value))
    except (ValueError, TypeError):
        message = "the schedule's policy has settings that acodm does not know; use --mode replay"
        raise ScheduleError(message) from None


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if set(tensors) != set(expected):
        odd = sorted(set(tensors) ^ set(expected))[:3]
        raise ScheduleError(
            f"the schedule's policy has missing or unknown tensors ({', '.join(odd)}); use --mode replay"
        )
    for name, tensor in tensors.items():
        shape, dtype = tuple(expected[name].shape), expected[name].dtype
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ScheduleError(
                f"the schedule's policy tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}; "
                "use --mode replay"
            )
        if not tensor.isfinite().all():
            raise ScheduleError(
                f"the schedule's policy tensor {name} has values that are not finite; use --mode replay"
            )


@dataclass(frozen=True)
class PolicySettings:
    """The settings of `FrozenPolicy`."""

    schedule: str | None = None
    """The schedule whose policy is queried."""


class FrozenPolicy(Mixer):
    """Queries a trained actor with the live state of the run. It needs no reward, per-domain gradients or critic."""

    name = "policy"
    Settings = PolicySettings
    files = ("schedule",)

    def __init__(self, actor: Actor, normalizer: RunningNormalizer, settings: AgentSettings) -> None:
        self.actor = actor
        self.normalizer = normalizer
        self.agent_settings = settings
        self.depths = relative_depths(settings.depths)
        self.offsets_K = torch.zeros(actor.prior_K.shape[0])
        self.recorded_SK: Array | None = None

    @classmethod
    def make(cls, task: Task) -> Mixer:
        own = with_options(cls.Settings(), task.options, cls.name)
        schedule, domains = task.schedule, task.domains
        if schedule is not None:
            domains = schedule.domains  # They are the same; the corpus may name them otherwise.
        elif own.schedule is not None:
            schedule = Schedule.load(own.schedule)
        else:
            raise UsageError("mixer policy needs --mixer-option schedule=FILE.parquet")
        if schedule.policy is None:
            raise ScheduleError("the schedule holds no policy; use mixer replay, or --mode replay of apply")
        policy = load_policy(schedule.policy, domains, agent_settings(task.preset))
        policy.recorded_SK = schedule.weights_SK
        return policy

    @torch.no_grad()
    def offsets(self, observation: Observation) -> Tensor:
        """Returns the actor's logit offsets from log(prior), smoothed over steps. [K]"""
        keep, state_F = self.agent_settings.smoothing, encode_state(observation)
        self.offsets_K = keep * self.offsets_K + (1 - keep) * self.actor.offsets(self.normalizer(state_F))
        return self.offsets_K

    def weights(self, observation: Observation) -> Array:
        return self.actor.weights(self.offsets(observation)).numpy().astype(np.float64)

    def planned_weights(self) -> Array | None:
        """Returns the weights of the run in which it was learned. In this run, it follows this run's own state."""
        return self.recorded_SK

    def observe(self, feedback: Feedback) -> Report:
        return Report(phase="policy")

    def end_episode(self, cost: float, left: int) -> None:
        self.offsets_K = torch.zeros_like(self.offsets_K)

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self.agent_settings, name) for name in _ACTOR_SETTINGS}

    def state_dict(self) -> dict[str, Any]:
        return {"offsets": self.offsets_K}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offsets_K = state["offsets"]
