"""The settings of the mixture: what decides the domain weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from acodm_cli.mixing.catalog import MIXERS
from acodm_cli.settings import setting

AgentPreset = Literal["default", "paper"]
ApplyMode = Literal["auto", "policy", "replay", "online"]
Prior = Literal["given", "uniform", "natural", "importance"]
ReplayAlignment = Literal["progress", "steps", "tokens"]

# The mixer that decides the weights in each mode of `apply`. auto is one of them, by what the schedule holds.
MIXER_OF_MODE = {"policy": "policy", "replay": "replay", "online": "ac-odm"}


@dataclass(frozen=True)
class MixingSettings:
    """The settings that say what decides the domain weights."""

    PANEL: ClassVar = "Mixing"

    schedule: str | None = setting(None, commands=("apply",), changeable=True)
    """The schedule to train with: a file (.parquet; your own weights also as .csv or .json with step or progress, domain and
    weight), or the name of a reference schedule. Without one: --mode online."""

    mode: ApplyMode = setting("auto", commands=("apply",))
    """policy: query the frozen policy; replay: follow the recorded weights; online: keep learning; auto: policy if the
    schedule has one, else replay."""

    replay_by: ReplayAlignment = setting("progress", commands=("apply",))
    """What maps the recorded weights on this run's budget."""

    map: dict[str, str] | None = setting(None, commands=("apply",))
    """What a domain of the schedule is in this corpus: OLD=NEW. OLD=ONE+OTHER splits it by tokens, the same NEW for several merges
    them, OLD= leaves it out, =NEW is a domain that the schedule lacks."""

    prior: Prior = setting("given", commands=("proxy-train",))
    """The weights to start from and to explore around. natural: by tokens. importance: those that make the targets' text most likely,
    by the bigrams of the domains. Both hold 5% of uniform weights. given: the manifest's; without them importance if targets guide
    ac-odm, else uniform."""

    objective_weights: dict[str, str] | None = setting(None, flag="--objective-weight")
    """How much a domain's loss counts in what the mixture is for: NAME=2, or 0. Default: 1. With targets, theirs count instead."""

    episodes: int = setting(1, least=1, most=1000, commands=("proxy-train",))
    """The number of runs, in each of which the model starts anew while the mixer goes on learning. The schedule is that of
    the best one."""

    mixer: str = setting("ac-odm", choices=MIXERS, commands=("proxy-train",))
    """What decides the weights: ac-odm learns a policy; the others are baselines."""

    mixer_options: dict[str, str] | None = setting(None, flag="--mixer-option")
    """Change one setting of the mixer: NAME=VALUE. `--mixer-option help` lists them."""

    agent: AgentPreset = "default"
    """The preset of the actor-critic agent."""
