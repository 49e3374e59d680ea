"""Collects what a run drew and learned, one row of each column per step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acodm_cli.schedule.measures import entropy
from acodm_cli.schedule.schedule import DOMAIN_COLUMNS, STEP_COLUMNS, Schedule

if TYPE_CHECKING:
    from acodm_cli.engine.trainer import StepEvent


class Recorder:
    def __init__(self, domains: list[str]) -> None:
        self.domains = domains
        self.rows: dict[str, list[Any]] = {name: [] for name in ("step", "tokens", *DOMAIN_COLUMNS, *STEP_COLUMNS)}

    def add(self, event: StepEvent) -> None:
        missing_K = np.full(len(self.domains), np.nan)
        report = event.report
        row = {
            "step": event.step,
            "tokens": event.tokens,
            "weight": event.weights_K,
            "samples": event.samples_K,
            "loss": event.losses_K,
            "reward": missing_K if report.reward_K is None else report.reward_K,
            "validation_loss": missing_K if event.validation_K is None else event.validation_K,
            "train_loss": event.train_loss,
            "learning_rate": event.learning_rate,
            "interaction_energy": event.interaction_energy,
            "self_energy": event.self_energy,
            "critic_loss": np.nan if report.critic_loss is None else report.critic_loss,
            "actor_objective": np.nan if report.actor_objective is None else report.actor_objective,
            "entropy": float(entropy(event.weights_K)),
        }
        for name, value in row.items():
            self.rows[name].append(value)

    def schedule(self, info: dict[str, Any], policy: bytes | None) -> Schedule:
        return Schedule(
            domains=self.domains,
            step_S=np.array(self.rows["step"], dtype=np.int64),
            tokens_S=np.array(self.rows["tokens"], dtype=np.int64),
            per_domain={name: np.stack(self.rows[name]).astype(dtype) for name, dtype in DOMAIN_COLUMNS.items()},
            per_step={name: np.array(self.rows[name], dtype=np.float32) for name in STEP_COLUMNS},
            info=info,
            policy=policy,
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.from_numpy(np.array(rows)) for name, rows in self.rows.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = {name: list(state[name].numpy()) for name in self.rows}
