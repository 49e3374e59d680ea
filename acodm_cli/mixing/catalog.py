"""All mixers by name. To add a mixer, add a file and one line here.

An entry is "module:Class". The module is imported only when its mixer is asked for, so `acodm --help` can list the
names without importing any of them.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from acodm_cli.errors import UsageError

if TYPE_CHECKING:
    from acodm_cli.mixing.mixer import Mixer, Task

MIXERS = {
    "ac-odm": "acodm_cli.mixing.acodm.learner:AcOdmLearner",
    "natural": "acodm_cli.mixing.baselines.static:NaturalMixer",
    "uniform": "acodm_cli.mixing.baselines.static:UniformMixer",
    "temperature": "acodm_cli.mixing.baselines.static:TemperatureMixer",
    "fixed": "acodm_cli.mixing.baselines.fixed:FixedMixer",
    "replay": "acodm_cli.mixing.baselines.replay:ReplayMixer",
    "policy": "acodm_cli.mixing.acodm.policy:FrozenPolicy",
    "odm": "acodm_cli.mixing.baselines.odm:OdmMixer",
    "doge": "acodm_cli.mixing.baselines.doge:DogeMixer",
    "doremi": "acodm_cli.mixing.baselines.doremi:DoremiMixer",
    "pike": "acodm_cli.mixing.baselines.pike:PikeMixer",
    "ado": "acodm_cli.mixing.baselines.ado:AdoMixer",
    "importance": "acodm_cli.mixing.baselines.importance:ImportanceMixer",
    "dga": "acodm_cli.mixing.baselines.dga:DgaMixer",
    "swarm": "acodm_cli.mixing.baselines.swarm:SwarmMixer",
}


def mixer_class(name: str) -> type[Mixer]:
    """Returns the class of the mixer with this name. Raises UsageError if there is none."""
    if name not in MIXERS:
        raise UsageError(f"there is no mixer {name}; known: {', '.join(MIXERS)}")
    kind: type[Mixer] = resolve_name(MIXERS[name])
    return kind


def make_mixer(name: str, task: Task) -> Mixer:
    """Returns the mixer with this name, made for a task.

    Raises:
        UsageError: there is no mixer with this name, it does not have one of the options, or it refuses a value.
        ScheduleError: a schedule cannot be read, or it has other domains.
    """
    return mixer_class(name).make(task)
