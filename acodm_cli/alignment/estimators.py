"""Makes the probe that the settings ask for."""

from __future__ import annotations

import torch
from torch import nn

from acodm_cli.alignment.exact import ExactProbe
from acodm_cli.alignment.probe import GradientProbe, select_layers
from acodm_cli.alignment.settings import AlignmentSettings
from acodm_cli.alignment.sketch import SketchProbe


def make_probe(
    model: nn.Module,
    num_domains: int,
    settings: AlignmentSettings,
    seed: int,
    device: torch.device | None = None,
    num_guides: int = 0,
) -> GradientProbe:
    """Makes a probe of the layers that the settings select. device: where the model will compute, None for where its
    weights are now. num_guides: how many guides there may be.

    Raises:
        UsageError: the settings select no layer.
    """
    layers = select_layers(model, settings.alignment_layers)
    if settings.alignment == "exact":
        return ExactProbe(layers, num_domains, halves=True, device=device, num_guides=num_guides)
    size, rotation, tokens = settings.alignment_size, settings.alignment_rotation, settings.alignment_tokens
    return SketchProbe(layers, num_domains, True, seed, size, rotation, tokens, device, num_guides)
