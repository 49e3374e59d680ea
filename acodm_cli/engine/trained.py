"""Trained weights: of the model that a run starts from (--init-from), or compares with.

    FOLDER or hub name --trained_folder--> folder --trained_config--> configuration --load_model--> model in fp32

Only safetensors and JSON are read, and none of a stranger's code is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acodm_cli.engine.models import CONTEXT, PRESETS, read_config
from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import in_short

# What is taken from the hub.
_OF_THE_HUB = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
)
_INDEX, _LARGEST_INDEX = "model.safetensors.index.json", 1 << 26
# Forms of weights that are programs, by their endings.
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights as safetensors, in one file or in several with an index."""
    return any((folder / name).is_file() for name in ("model.safetensors", _INDEX))


def trained_folder(source: str) -> Path:
    """Returns the folder of a trained model. source: a folder, or a name on the hub, from which it is taken once.

    Raises:
        UsageError: there is no such model, or it has no configuration or no safetensors.
    """
    try:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            folder = _from_hub(source)
        if not (folder / "config.json").is_file():
            raise UsageError(f"--init-from {source} has no config.json; give the folder that save_pretrained wrote")
        if has_weights(folder):
            return folder
    except (OSError, RuntimeError) as error:  # a name that no file can have, or an unknown user's home
        raise UsageError(f"--init-from {str(source)[:80]}: {in_short(error)}; give a folder or a hub name") from None
    if any(path.suffix in _PICKLED for path in folder.iterdir()):
        raise UsageError(
            f"--init-from {source} has pickled weights only, which can run code when they are read; where you trust them, "
            "load the model with transformers and write it with save_pretrained, and give that folder"
        )
    raise UsageError(f"--init-from {source} has no weights (model.safetensors); give a folder that has, or use --model")


def _from_hub(source: str) -> Path:
    import huggingface_hub

    if source in PRESETS:
        hub = f"; did you mean EleutherAI/{source}?" if source.startswith("pythia") else ""
        raise UsageError(f"--init-from {source} is a preset of --model, which has no weights{hub}")
    if "/" not in source or source.startswith((".", "/", "~")) or Path(source).exists():
        raise UsageError(f"--init-from {source} is no folder; give one with config.json and safetensors, or a hub name")
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=list(_OF_THE_HUB)))
    except Exception as error:  # the hub's errors have no common base class
        raise UsageError(f"cannot get --init-from {source} from the hub: {in_short(error)}") from None


def trained_config(folder: Path, seq_len: int) -> Any:
    """Returns the transformers configuration of a trained model, as it was trained.

    Raises:
        UsageError: it cannot be used, or the model does not take sequences of seq_len tokens.
    """
    config = read_config(str(folder))
    longest = getattr(config, "max_position_embeddings", None) or CONTEXT
    if longest < seq_len:
        raise UsageError(f"--seq-len {seq_len} is longer than what {folder.name} was made for; give at most {longest}")
    config.use_cache = False
    return config


def load_model(folder: str, device: torch.device) -> nn.Module:
    """Loads a trained model from a folder, in fp32.

    Raises:
        UsageError: the folder has no model, or it cannot be read.
    """
    import transformers

    _check_index(Path(folder))
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=read_config(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, found = loaded
        # transformers draws what is missing at random, leaves out what is not of the model, and warns only.
        if strange := sorted(name for name in map(str, found["unexpected_keys"]) if name.endswith(".weight")):
            raise UsageError(
                f"the weights of {folder} have {strange[0]}, which its config.json does not; they are of another model"
            )
        if missing := sorted(map(str, found["missing_keys"])):
            raise UsageError(
                f"the weights of {folder} lack {missing[0]} ({len(missing)} in all); they are of another model"
            )
    except AcodmError:
        raise
    except Exception as error:  # a stranger's file may make its parsers and checks raise anything
        raise UsageError(f"cannot load the model of {folder}: {in_short(error)}") from None
    trained: nn.Module = model
    return trained.to(device)


def _check_index(folder: Path) -> None:
    """Raises UsageError if an index leads to other files than safetensors of this folder: transformers would read pickled ones."""
    index = folder / _INDEX
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise ValueError(f"it is larger than {_LARGEST_INDEX >> 20} MiB")
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if odd := [name for name in named if Path(name).name != name or not name.endswith(".safetensors")]:
            raise ValueError(f"it names {str(odd[0])[:80]!r}, which is no safetensors file of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"cannot read {index}: {in_short(error)}") from None


def continued_model(folder: Path, config: Any, seed: int, device: torch.device) -> nn.Module:
    """Returns a trained model to go on with, in fp32 and in training mode. config: its configuration, whose vocabulary may be
    larger than that of the weights; then the seed decides the new rows.

    Raises:
        UsageError: the weights cannot be read, or do not fit the configuration.
    """
    model: Any = load_model(str(folder), torch.device("cpu"))
    if model.config.vocab_size != config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    model.config.use_cache = False
    model.config.eos_token_id = config.eos_token_id
    # The embedding of a padding token is never trained. Where documents end with the same token, it must be.
    model.config.pad_token_id = model.get_input_embeddings().padding_idx = None
    continued: nn.Module = model
    return continued.train().to(device)
