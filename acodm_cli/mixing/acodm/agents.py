"""The kinds of agent, by the value of the setting `actor_update`."""

from __future__ import annotations

from torch import Tensor

from acodm_cli.mixing.acodm.agent import Agent
from acodm_cli.mixing.acodm.ddpg import DdpgAgent
from acodm_cli.mixing.acodm.mirror import MirrorAgent
from acodm_cli.mixing.acodm.settings import AgentSettings

AGENTS: dict[str, type[Agent]] = {"gradient": DdpgAgent, "mirror": MirrorAgent}


def make_agent(state_size: int, prior_K: Tensor, settings: AgentSettings, seed: int) -> Agent:
    """Returns the agent that the settings ask for. state_size: F, the number of features of a state."""
    return AGENTS[settings.actor_update](state_size, prior_K, settings, seed)
