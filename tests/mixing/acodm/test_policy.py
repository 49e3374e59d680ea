from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from acodm_cli.errors import ScheduleError
from acodm_cli.mixing.acodm.agent import Agent
from acodm_cli.mixing.acodm.agents import make_agent
from acodm_cli.mixing.acodm.policy import dump_policy, load_policy
from acodm_cli.mixing.acodm.settings import DEFAULT, PAPER
from acodm_cli.mixing.acodm.state import encode_state, state_size
from tests.mixing.feedback import observation

DOMAINS = ["a", "b", "c"]


def trained_agent() -> Agent:
    settings = replace(DEFAULT, actor_update="gradient")  # whose actor acts while it learns, too
    agent = make_agent(state_size(3, DEFAULT.depths), torch.tensor([0.5, 0.3, 0.2]), settings, seed=0)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=agent.generator))
    for state_F in np.random.default_rng(0).standard_normal((5, state_size(3, DEFAULT.depths))):
        agent.normalizer.update(torch.from_numpy(state_F))
    return agent


def tampered(change: str) -> bytes:
    data = dump_policy(trained_agent(), DOMAINS)
    tensors = dict(load(data))
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["acodm"])
    if change == "shape":
        tensors["actor.network.0.weight"] = torch.zeros(7, 7)
    elif change == "missing":
        del tensors["normalizer.mean"]
    elif change == "unknown":
        tensors["actor.extra"] = torch.zeros(1)
    elif change == "dtype":
        tensors["actor.network.0.weight"] = tensors["actor.network.0.weight"].half()
    elif change == "nan":
        tensors["actor.network.0.weight"][0, 0] = float("nan")
    elif change == "prior":
        tensors["actor.prior_K"] = torch.tensor([1.0, 1.0, 1.0])
    elif change == "version":
        header["policy_version"] = 99
    elif change == "domains":
        header["domains"] = ["a", "b"]
    elif change == "huge":
        header["actor"]["hidden"] = 10**9
    elif change == "settings":
        header["actor"]["exec"] = "rm"
    elif change == "truncated":
        return data[: len(data) // 2]
    elif change == "garbage":
        return b"\xff" * 64
    elif change == "empty":
        return b""
    return save(tensors, metadata={"acodm": json.dumps(header)})


def test_round_trip_acts_alike() -> None:
    agent = trained_agent()
    policy = load_policy(dump_policy(agent, DOMAINS), DOMAINS, PAPER)
    weights_K = policy.weights(observation())
    state_F = encode_state(observation())
    assert np.allclose(weights_K, agent.act(state_F, "actor", 0.0).numpy(), atol=1e-7)
    assert weights_K.sum() == pytest.approx(1, abs=1e-6)


def test_reads_the_live_state() -> None:
    first, second = (load_policy(dump_policy(trained_agent(), DOMAINS), DOMAINS, DEFAULT) for _ in range(2))
    assert not np.allclose(first.weights(observation()), second.weights(observation(losses=(1.0, 5.0, 2.0))))


@pytest.mark.parametrize(
    "change",
    [
        "shape",
        "missing",
        "unknown",
        "dtype",
        "nan",
        "prior",
        "version",
        "domains",
        "huge",
        "settings",
        "truncated",
        "garbage",
        "empty",
    ],
)
def test_refuses_what_it_does_not_know(change: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        load_policy(tampered(change), DOMAINS, DEFAULT)
    assert "\n" not in str(caught.value)
