"""Settings of the AC-ODM agent: two presets of one implementation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from acodm_cli.config import AgentPreset
from acodm_cli.mixing.options import with_options

# Least and most of each number. Networks are bounded because policies come from strangers.
_RANGES: dict[str, tuple[float, float]] = {
    "hidden": (1, 8192),
    "layers": (1, 16),
    "depths": (1, 64),
    "tau": (0, 1),
    "step_size": (0, 1e3),
    "actor_lr": (0, 1),
    "critic_lr": (0, 1),
    "batch_size": (1, 2**20),
    "replay_capacity": (8, 2**24),
    "updates_per_step": (0, 1000),
    "warmup_share": (0, 1),
    "warmup_least": (0, 2**31),
    "warmup_noise": (0, 100),
    "noise": (0, 100),
    "noise_correlation": (0, 1),
    "anchor": (0, 1e3),
    "actor_delay": (1, 2**20),
    "target_noise": (0, 100),
}
# From 0 to below 1.
_BELOW_ONE = ("ema", "gamma", "smoothing", "floor_share")


@dataclass(frozen=True)
class AgentSettings:
    """hidden, layers: size of the actor's and critic's networks. depths: how many relative depths of the model
    the state reads weight norms at. ema: ξ of the reward. self_term: whether the reward adds the unbiased ‖g_i‖² to the
    paper's W_i, which makes it the first-order decrease of the summed domain losses. importance: whether it is divided by P.
    objective: whose first-order decrease it is: of the mean `loss` over domains, as in the paper, or of their mean `perplexity`.
    scale: of the rewards that the agent sees, `z-score` over domains or `relative` to their mean size. gamma: γ. tau: soft target
    update τ. actor_update: `gradient` is DDPG's; `mirror` lets the executed logits ascend by y = r + γ Q̄ and fits the actor to
    them (see `agent`). step_size: η of that ascent. batch_size, replay_capacity: transitions. updates_per_step: agent updates per training step. warmup_share: share of the
    run's steps that explore around the prior before the actor decides; warmup_least: at least so many.
    noise_space, warmup_noise, noise: exploration noise N(0, noise²) on the logits or on the weights, in the
    warm-up and after it; noise_correlation: of consecutive steps. smoothing: share of the previous step's logit
    offsets kept in the executed ones. logit_bound: largest offset from log(prior) before centring, None for no
    bound. floor_share: share of the prior mixed into every action, so that no domain starves. anchor: weight of
    KL(α ‖ prior) in what the policy ascends; by mirror ascent of a transferred policy, the divergence from that. quadratic_action: whether the critic adds a
    quadratic function of the action. twin_critics, actor_delay, target_noise: TD3's additions (1802.09477).
    huber: Huber instead of squared error for the critic. grad_clip: of the agent's own gradients, None for none.
    """

    hidden: int
    layers: int
    depths: int
    ema: float
    self_term: bool
    importance: bool
    objective: Literal["loss", "perplexity"]
    scale: Literal["z-score", "relative"]
    gamma: float
    tau: float
    actor_update: Literal["gradient", "mirror"]
    step_size: float
    actor_lr: float
    critic_lr: float
    batch_size: int
    replay_capacity: int
    updates_per_step: int
    warmup_share: float
    warmup_least: int
    noise_space: Literal["logit", "weight"]
    warmup_noise: float
    noise: float
    noise_correlation: float
    smoothing: float
    logit_bound: float | None
    floor_share: float
    anchor: float
    quadratic_action: bool
    twin_critics: bool
    actor_delay: int
    target_noise: float
    huber: bool
    grad_clip: float | None

    def __post_init__(self) -> None:
        """Raises ValueError for a number that no agent can work with."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} = {value}; give a number from {least} to {most:g}")
        for name in _BELOW_ONE:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} = {value}; give a number from 0 to below 1")
        for name in ("logit_bound", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value}; give a number above 0, or none")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def relative_depths(self) -> tuple[float, ...]:
        """Evenly spaced from the first block (0) to the last (1)."""
        if self.depths == 1:
            return (1.0,)
        return tuple(index / (self.depths - 1) for index in range(self.depths))

    def warmup_steps(self, total_steps: int) -> int:
        return max(self.warmup_least, round(self.warmup_share * total_steps))


# The publication's configuration. Its warm-up of 833 steps is 2% of its run of 41,667. It reads layer norms of
# "the first layer and all even layers", 7 of a 12-layer proxy; we read as many at relative depths, so that the
# policy fits a target of another depth.
PAPER = AgentSettings(
    hidden=1024,
    layers=5,
    depths=7,
    ema=0.9,
    self_term=False,
    importance=True,
    objective="loss",
    scale="z-score",
    gamma=0.95,
    tau=0.001,
    actor_update="gradient",
    step_size=0.0,
    actor_lr=1e-4,
    critic_lr=1e-4,
    batch_size=32,
    replay_capacity=10_000,
    updates_per_step=1,
    warmup_share=0.02,
    warmup_least=1,
    noise_space="weight",
    warmup_noise=0.02,
    noise=0.0,
    noise_correlation=0.0,
    smoothing=0.0,
    logit_bound=None,
    floor_share=0.01,
    anchor=0.0,
    quadratic_action=False,
    twin_critics=False,
    actor_delay=1,
    target_noise=0.0,
    huber=False,
    grad_clip=None,
)

# What a few hundred to a few thousand noisy transitions can learn from.
DEFAULT = AgentSettings(
    hidden=128,
    layers=2,
    depths=5,
    ema=0.9,
    self_term=True,
    importance=True,
    objective="perplexity",
    scale="relative",
    gamma=0.9,
    tau=0.05,
    actor_update="mirror",
    step_size=0.1,
    actor_lr=1e-3,
    critic_lr=3e-3,
    batch_size=64,
    replay_capacity=10_000,
    updates_per_step=1,
    warmup_share=0.05,
    warmup_least=10,
    noise_space="logit",
    warmup_noise=0.1,
    noise=0.0,
    noise_correlation=0.5,
    smoothing=0.8,
    logit_bound=3.0,
    floor_share=0.1,
    anchor=0.3,
    quadratic_action=True,
    twin_critics=True,
    actor_delay=2,
    target_noise=0.1,
    huber=True,
    grad_clip=1.0,
)

PRESETS: dict[AgentPreset, AgentSettings] = {"default": DEFAULT, "paper": PAPER}


def agent_settings(preset: AgentPreset, options: dict[str, str] | None = None) -> AgentSettings:
    """A preset with some settings replaced, given as strings.

    Raises:
        UsageError: an option that is not a setting, or whose value does not have the setting's type.
    """
    return with_options(PRESETS[preset], options, "ac-odm")
