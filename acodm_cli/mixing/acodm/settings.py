"""The settings of the AC-ODM agent, with two presets of one implementation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from acodm_cli.errors import UsageError
from acodm_cli.mixing.options import with_options
from acodm_cli.mixing.settings import AgentPreset
from acodm_cli.settings import check, setting


@dataclass(frozen=True)
class AgentSettings:
    """The settings of the agent. The defaults are the preset `default`: with them, it can learn from a few hundred to a
    few thousand noisy transitions. The sizes of networks are bounded, because policies come from strangers."""

    hidden: int = setting(128, least=1, most=8192)
    """The width of the actor's and the critic's hidden layers."""

    layers: int = setting(2, least=1, most=16)
    """The number of their hidden layers."""

    depths: int = setting(5, least=1, most=64)
    """The number of relative depths of the model at which the state reads weight norms."""

    ema: float = setting(0.9, least=0, below=1)
    """ξ, the share that the reward's moving average keeps per step."""

    reward: Literal["fixed-step", "alignment"] = "fixed-step"
    """What rewards a domain without targets: the gain of steps of a `fixed-step` size (`fixed_step.py`), or the paper's gradient
    `alignment`."""

    self_term: bool = True
    """Whether the reward by alignment adds the unbiased ‖g_i‖² to the paper's W_i. With it, the reward is the first-order decrease
    of the summed domain losses."""

    guide_ema: float = setting(0.95, least=0, below=1)
    """The share that the averages of a reward by targets keep per look at the targets."""

    crowding: float = setting(1.0, least=0, most=1)
    """κ, the share of what the mixture gains already that the reward for steps of a fixed size subtracts, without targets."""

    guided_crowding: float = setting(0.5, least=0, most=1)
    """κ with targets."""

    importance: bool = True
    """Whether the reward by alignment is divided by P, the probability that drew the domain."""

    objective: Literal["loss", "perplexity"] = "perplexity"
    """The quantity whose first-order decrease is rewarded: the mean `loss` over domains, as in the paper, or their mean
    `perplexity`."""

    scale: Literal["z-score", "relative"] = "relative"
    """The scale of the rewards by alignment that the agent sees: `z-score` over domains, or `relative` to their mean size. Those for
    steps of a fixed size are relative to the mean size of gains."""

    gamma: float = setting(0.9, least=0, below=1)
    """γ, the discount."""

    tau: float = setting(0.05, least=0, most=1)
    """τ of the soft updates of the target networks."""

    actor_update: Literal["gradient", "mirror"] = "mirror"
    """How the policy improves: `gradient` is DDPG's (`ddpg.py`); `mirror` lets the executed logits ascend by
    y = r + γ Q̄ and fits the actor to them (`mirror.py`)."""

    step_size: float = setting(0.1, least=0, most=1e3)
    """η of the mirror ascent, without targets."""

    guided_step_size: float = setting(0.3, least=0, most=1e3)
    """η with targets. It is larger, because their reward counts only as far as it stands out from its noise."""

    actor_lr: float = setting(1e-3, least=0, most=1)
    """The actor's learning rate."""

    critic_lr: float = setting(3e-3, least=0, most=1)
    """The critics' learning rate."""

    batch_size: int = setting(64, least=1, most=2**20)
    """The number of transitions of an update."""

    replay_capacity: int = setting(10_000, least=8, most=2**24)
    """The number of transitions that the replay buffer holds."""

    updates_per_step: int = setting(1, least=0, most=1000)
    """The number of the agent's updates per training step."""

    warmup_share: float = setting(0.05, least=0, most=1)
    """The share of the run's steps that explore around the prior before the actor decides."""

    warmup_least: int = setting(10, least=0, most=2**31)
    """The least number of those steps."""

    noise_space: Literal["logit", "weight"] = "logit"
    """Whether the exploration noise is added to the logits or to the weights."""

    warmup_noise: float = setting(0.1, least=0, most=100)
    """The standard deviation of the exploration noise in the warm-up."""

    noise: float = setting(0.0, least=0, most=100)
    """The standard deviation of the exploration noise after the warm-up."""

    noise_correlation: float = setting(0.5, least=0, most=1)
    """The correlation of the noise of consecutive steps."""

    smoothing: float = setting(0.8, least=0, below=1)
    """The share of the previous step's logit offsets that the executed ones keep, where the actor decides."""

    logit_bound: float | None = setting(3.0, above=0)
    """The largest offset from log(prior) before centring, None for no bound."""

    floor_share: float = setting(0.1, least=0, below=1)
    """The share of the prior that is mixed into every action, so that no domain starves."""

    anchor: float = setting(0.3, least=0, most=1e3)
    """The weight of KL(α ‖ prior) in what the policy ascends. Of a transferred policy it is the divergence from that
    policy."""

    quadratic_action: bool = True
    """Whether the critic adds a quadratic function of the action."""

    twin_critics: bool = True
    """Whether there are two critics, of which the lower value counts (TD3, 1802.09477)."""

    actor_delay: int = setting(2, least=1, most=2**20)
    """The number of critic updates per actor update (TD3)."""

    target_noise: float = setting(0.1, least=0, most=100)
    """The standard deviation of the noise on the target actor's logits (TD3)."""

    huber: bool = True
    """Whether the critic's error is Huber's instead of the squared one."""

    grad_clip: float | None = setting(1.0, above=0)
    """The norm that the agent's own gradients are clipped to, None for no clipping."""

    def __post_init__(self) -> None:
        """Raises ValueError for a number that no agent can work with."""
        check(self)

    def to_json(self) -> dict[str, Any]:
        """Returns all settings by name."""
        return asdict(self)

    def warmup_steps(self, total_steps: int) -> int:
        """Returns the number of steps that explore around the prior, in a run of `total_steps`."""
        return max(self.warmup_least, round(self.warmup_share * total_steps))


DEFAULT = AgentSettings()

# The publication's configuration. Its warm-up of 833 steps is 2% of its run of 41,667. It reads layer norms of
# "the first layer and all even layers", 7 of a 12-layer proxy; we read as many at relative depths, so that the
# policy fits a target of another depth.
PAPER = AgentSettings(
    reward="alignment",
    hidden=1024,
    layers=5,
    depths=7,
    self_term=False,
    objective="loss",
    scale="z-score",
    gamma=0.95,
    tau=0.001,
    actor_update="gradient",
    step_size=0.0,
    guided_step_size=0.0,
    actor_lr=1e-4,
    critic_lr=1e-4,
    batch_size=32,
    warmup_share=0.02,
    warmup_least=1,
    noise_space="weight",
    warmup_noise=0.02,
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

PRESETS: dict[AgentPreset, AgentSettings] = {"default": DEFAULT, "paper": PAPER}


def agent_settings(preset: str, options: dict[str, str] | None = None) -> AgentSettings:
    """Returns a preset with some of its settings replaced. options: the new values, as texts by the setting's name.

    Raises:
        UsageError: an option is not a setting, or its value does not have the setting's type or is out of its range.
    """
    return with_options(PRESETS[preset], options, "ac-odm")  # type: ignore[index]


def check_read(options: dict[str, str], settings: AgentSettings, guided: bool) -> None:
    """Refuses options that nothing would read. options: those that were given. settings: with them. guided: whether there are targets.

    Raises:
        UsageError: an option belongs to another reward or another way of updating the actor.
    """
    mirror = settings.actor_update == "mirror"
    readers = (
        (("self_term", "importance", "scale"), not guided and settings.reward == "alignment", "with reward=alignment and without targets"),
        (("crowding",), not guided and settings.reward == "fixed-step", "with reward=fixed-step and without targets"),
        (("reward", "objective"), not guided, "without targets"),
        (("guided_crowding", "guide_ema"), guided, "with targets"),
        (("step_size",), mirror and not guided, "with actor_update=mirror and without targets"),
        (("guided_step_size",), mirror and guided, "with actor_update=mirror and with targets"),
        (("smoothing", "actor_delay"), not mirror, "with actor_update=gradient"),
    )  # fmt: skip
    for names, read, where in readers:
        if unread := [name for name in names if name in options and not read]:
            raise UsageError(f"mixer ac-odm reads its option {unread[0]} only {where}; leave it out")
