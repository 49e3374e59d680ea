"""The model that a run begins with: fresh, or with the trained weights of --init-from, which must fit the corpus's tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acodm_cli.corpus.tokenizer import Tokenizer, load_tokenizer
from acodm_cli.engine.distributed import Ranks
from acodm_cli.engine.models import PRESETS, build_model
from acodm_cli.engine.trained import continued_model, has_weights, trained_folder
from acodm_cli.errors import UsageError
from acodm_cli.runs.settings import RunSettings


def trained_weights(settings: RunSettings, ranks: Ranks) -> Path | None:
    """Returns the folder of the weights to go on with, None for fresh ones.

    Raises:
        UsageError: there are no such weights, or an option does nothing beside them, or without them.
    """
    if settings.init_from is not None:
        if "model" in settings.changed():
            raise UsageError("--init-from brings its own configuration; leave --model out")
        source = settings.init_from
        folder = ranks.in_turn(lambda: trained_folder(source)).resolve()
        saved = Path(settings.save_model).expanduser().resolve() if settings.save_model else None
        if saved is not None and (saved.is_relative_to(folder) or folder.is_relative_to(saved)):
            raise UsageError(
                f"--save-model {settings.save_model} would replace --init-from {source}; give another folder"
            )
        return folder
    if settings.resize_embeddings:
        raise UsageError("--resize-embeddings is for --init-from; leave it out")
    return None


def warn_of_unused_weights(settings: RunSettings, warn: Callable[[str], None]) -> None:
    """Warns if --model names a folder with weights, of which the configuration alone is used."""
    if settings.model not in PRESETS and has_weights(Path(settings.model)):
        warn(
            f"the weights in {settings.model} are not used, only its configuration; to go on with them, give --init-from "
            f"{settings.model} instead of --model"
        )


def initial_model(settings: RunSettings, config: Any, trained: Path | None, device: torch.device) -> nn.Module:
    """Returns the model before its first step. Raises UsageError if its trained weights cannot be used."""
    if trained is None:
        return build_model(config, settings.seed, device)
    return continued_model(trained, config, settings.seed, device)


def with_own_tokenizer(settings: RunSettings, trained: Path | None) -> RunSettings:
    """Returns the settings with the tokenizer of trained weights, unless the user gave one."""
    if trained is None or settings.tokenizer is not None:
        return settings
    if not (trained / "tokenizer.json").is_file():
        raise UsageError(f"--init-from {settings.init_from} has no tokenizer.json; give its tokenizer with --tokenizer")
    return replace(settings, tokenizer=str(trained))


def fit_vocabulary(settings: RunSettings, config: Any, trained: Path, tokenizer: Tokenizer) -> None:
    """Checks that trained weights know the tokens of the corpus, or lets `config` have rows for all of them.

    Raises:
        UsageError: they were trained with another tokenizer, or have too few rows, and the user did not ask for others.
    """
    source, fits = settings.init_from, tokenizer.vocab_size <= config.vocab_size
    if not settings.resize_embeddings:
        own = load_tokenizer(str(trained), tokenizer.end_text) if (trained / "tokenizer.json").is_file() else tokenizer
        ids, own_ids = (each.backend.get_vocab(with_added_tokens=True) for each in (tokenizer, own))
        if ids != own_ids:
            raise UsageError(
                f"tokenizer {tokenizer.name} is not that of --init-from {source}: its tokens have other numbers; leave --tokenizer "
                "out, or give --resize-embeddings to train with it all the same"
            )
        if not fits:
            raise UsageError(
                f"--init-from {source} has {config.vocab_size:,} embeddings, and tokenizer {tokenizer.name} {tokenizer.vocab_size:,} "
                "tokens; give its own tokenizer, or --resize-embeddings for fresh rows"
            )
    elif not fits:
        config.vocab_size = tokenizer.padded_vocab_size
