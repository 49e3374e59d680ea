"""The settings of the gradient probe: how per-domain gradients are estimated, and of which layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from acodm_cli.settings import setting

Estimator = Literal["sketch", "exact"]


@dataclass(frozen=True)
class AlignmentSettings:
    """How the Gram matrix of the domain gradients is estimated."""

    PANEL: ClassVar = "Alignment"

    alignment: Estimator = "sketch"
    """The estimator of per-domain gradients: sketch (cheap, unbiased) or exact (to compare with)."""

    alignment_size: int = setting(64, least=1, most=4096)
    """The number of features that a sketch keeps per side of a layer."""

    alignment_rotation: int = setting(6, least=1)
    """A sketch looks at one transformer block in so many per step, in turn."""

    alignment_tokens: int = setting(32768, least=1)
    """A sketch looks at so many tokens of a step, drawn evenly from its sequences, and at one in 16 at least."""

    alignment_layers: str = "all"
    """The layers whose gradients make the reward: all, attention, mlp, embedding, unembedding, or name patterns,
    separated by commas."""

    def alignment_info(self) -> dict[str, Any]:
        """Returns what a schedule says about the estimator, as JSON values."""
        info: dict[str, Any] = {"estimator": self.alignment, "layers": self.alignment_layers}
        if self.alignment == "sketch":
            info |= {"size": self.alignment_size, "rotation": self.alignment_rotation, "tokens": self.alignment_tokens}
        return info
