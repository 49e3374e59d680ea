"""A mixer for the domains of a schedule, on a corpus whose domains are others.

Shape letters: K domains of the corpus, M domains of the schedule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from acodm_cli.mixing.domain_map import DomainMap
from acodm_cli.mixing.mixer import Array, Feedback, Mixer, Observation, Report


class MappedMixer(Mixer):
    """Divides the weights of a mixer by `DomainMap`, and shows it the run as if it drew from the schedule's domains.

    With B_mk = 1 where domain k is part of domain m, n_k sequences of k in the last batch, and the weights α that the mixer gave:

        n_m = Σ_k n_k B_mk α_m / Σ_j B_jk α_j          domains that are merged have their part in proportion to α
        ℓ_m = Σ_k B_mk n_k ℓ_k / Σ_k B_mk n_k          the mean over the sequences of all parts; held if none was drawn

    So domains that are split look as they would in one piece. A domain that is left out has n_m = 0, and for ℓ_m the mean of the
    others, because the loss of a model that never learned it would be unlike any that the mixer knows. New domains are not seen.

    A mixer that is open loop is asked for the next step's weights before this step is over, and takes no note of it.

    inner: the mixer, which must not need the gradients of domains or a reference model. losses_M: ℓ as it saw them last. weights_M:
    α, of the last step.
    """

    def __init__(self, inner: Mixer, domain_map: DomainMap) -> None:
        assert not inner.needs_gram
        assert inner.reference is None
        self.inner = inner
        self.map = domain_map
        self.name, self.own, self.depths = inner.name, inner.own, inner.depths
        self.open_loop = inner.open_loop
        self.files, self.uses = inner.files, inner.uses  # type: ignore[misc]
        self.weights_M = np.ones(len(domain_map.parts))
        self.losses_M: Array | None = None

    def _seen(self, observation: Observation) -> Observation:
        """Returns what the mixer is to see of an observation of the corpus's domains."""
        kept_M = self.map.is_part_MK.any(axis=1)
        before_M = self.losses_M
        if before_M is None:  # before the first batch
            before_M = self.map.shares_MK @ observation.losses_K
            before_M[~kept_M] = before_M[kept_M].mean()
        drawn_MK = self.map.is_part_MK * observation.samples_K
        drawn_M = drawn_MK.sum(axis=1)
        losses_M = np.divide(drawn_MK @ observation.losses_K, drawn_M, out=before_M.copy(), where=drawn_M > 0)
        losses_M[~kept_M] = losses_M[kept_M].mean()
        samples_M = self.map.gathered(observation.samples_K, self.weights_M)
        return replace(observation, samples_K=samples_M, losses_K=losses_M, previous_losses_K=before_M)

    def weights(self, observation: Observation) -> Array:
        self.observation = self._seen(observation)
        self.losses_M = self.observation.losses_K
        self.weights_M = self.inner.weights(self.observation)
        return self.map.divided(self.weights_M)

    def observe(self, feedback: Feedback) -> Report:
        if self.open_loop:
            return Report()
        seen = self._seen(feedback.next_observation)
        before, samples_M = self.observation, seen.samples_K
        return self.inner.observe(Feedback(before, self.weights_M, samples_M, None, None, None, seen))

    def end_episode(self, cost: float, left: int) -> None:
        self.losses_M = None
        self.inner.end_episode(cost, left)

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()

    def planned_weights(self) -> Array | None:
        planned_SM = self.inner.planned_weights()
        return None if planned_SM is None else self.map.divided(planned_SM)

    def state_dict(self) -> dict[str, Any]:
        losses_M = None if self.losses_M is None else torch.from_numpy(self.losses_M)
        return {"inner": self.inner.state_dict(), "weights": torch.from_numpy(self.weights_M), "losses": losses_M}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.weights_M = state["weights"].numpy()
        self.losses_M = None if state["losses"] is None else state["losses"].numpy()
