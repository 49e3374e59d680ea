"""A schedule's mixer, or the learner that goes on from its policy, on a corpus whose domains are others.

Shape letters: K domains of the corpus, M domains of the schedule.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from acodm_cli.errors import UsageError
from acodm_cli.mixing.acodm.learner import AcOdmLearner
from acodm_cli.mixing.acodm.policy import FrozenPolicy, load_policy
from acodm_cli.mixing.acodm.settings import agent_settings, check_read
from acodm_cli.mixing.catalog import make_mixer
from acodm_cli.mixing.domain_map import DomainMap
from acodm_cli.mixing.mapped import MappedMixer
from acodm_cli.mixing.mixer import Mixer, Observation, Task


class TransferredPolicy(MappedMixer):
    """A frozen policy that a learner on the corpus's domains starts from. prior_K: the policy's prior, divided as its weights are."""

    def __init__(self, policy: FrozenPolicy, domain_map: DomainMap) -> None:
        policy.actor.floor_share = 0.0  # the learner mixes its share of the prior into what it adds to these offsets
        super().__init__(policy, domain_map)
        self.prior_K = domain_map.divided(policy.actor.prior_K.double().numpy())

    def offsets(self, observation: Observation) -> Tensor:
        """Returns the mean-centred logit offsets from log(prior) that give the divided weights. [K]"""
        offsets_K = np.log(self.weights(observation).clip(min=1e-30) / self.prior_K)
        return torch.from_numpy(offsets_K - offsets_K.mean()).float()


def make_mapped_mixer(name: str, task: Task, domain_map: DomainMap) -> Mixer:
    """Returns the mixer with this name, made for a task whose schedule has other domains than the run.

    `policy` and `replay` decide in the schedule's domains. `ac-odm` learns in the corpus's, where each has its own gradient and
    counts in the objective as it should: what it takes from the policy are the weights from which it departs. Its critics learn
    anew, as after every transfer.

    Raises:
        UsageError, ScheduleError: as `make_mixer`, or the agent would have to learn on in the policy's own network.
    """
    assert task.schedule is not None
    if name != AcOdmLearner.name:
        even_M = np.ones(len(domain_map.parts))
        tokens_M, prior_M = (domain_map.gathered(amounts_K, even_M) for amounts_K in (task.tokens_K, task.prior_K))
        of_schedule = replace(task, domains=task.schedule.domains, tokens_K=tokens_M, prior_K=prior_M / prior_M.sum())
        return MappedMixer(make_mixer(name, of_schedule), domain_map)
    if task.schedule.policy is None:
        return make_mixer(name, replace(task, schedule=None))
    settings = agent_settings(task.preset, task.options)
    check_read(task.options or {}, settings, bool(task.objective.targets))
    if settings.actor_update == "gradient":
        raise UsageError(
            "with actor_update=gradient (--agent paper) the policy's own network learns on, which cannot take other domains; use "
            "--agent default, or --mode policy"
        )
    policy = load_policy(task.schedule.policy, task.schedule.domains, settings)
    initial = TransferredPolicy(policy, domain_map)
    return AcOdmLearner(initial.prior_K, policy.agent_settings, task.seed, initial, task.objective)
