"""Causal language models from configurations that ship with acodm: no hub access."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from acodm_cli.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """lr: peak learning rate (Pythia: 2304.01373, table of the suite's hyperparameters)."""

    family: Literal["pythia", "llama"]
    layers: int
    hidden: int
    heads: int
    intermediate: int
    lr: float


def _pythia(layers: int, hidden: int, heads: int, lr: float) -> Preset:
    return Preset("pythia", layers, hidden, heads, 4 * hidden, lr)


PRESETS: dict[str, Preset] = {
    "pythia-14m": _pythia(6, 128, 4, 1e-3),
    "pythia-31m": _pythia(6, 256, 8, 1e-3),
    "pythia-70m": _pythia(6, 512, 8, 1e-3),
    "pythia-160m": _pythia(12, 768, 12, 6e-4),
    "pythia-410m": _pythia(24, 1024, 16, 3e-4),
    "pythia-1b": _pythia(16, 2048, 8, 3e-4),
    "pythia-1.4b": _pythia(24, 2048, 16, 2e-4),
    "pythia-2.8b": _pythia(32, 2560, 32, 1.6e-4),
    "pythia-6.9b": _pythia(32, 4096, 32, 1.2e-4),
    "pythia-12b": _pythia(36, 5120, 40, 1.2e-4),
    "llama-tiny": Preset("llama", 6, 128, 4, 384, 1e-3),
    "llama-160m": Preset("llama", 12, 768, 12, 2048, 6e-4),
    "llama-0.9b": Preset("llama", 16, 2048, 16, 5504, 3e-4),
}
CONTEXT = 2048
DEFAULT_LR = 3e-4


def published_lr(model: str) -> float:
    return PRESETS[model].lr if model in PRESETS else DEFAULT_LR


def model_config(model: str, vocab_size: int, seq_len: int) -> Any:
    """A transformers configuration. model: a preset, or a folder or hub name whose configuration is used with this
    vocabulary.

    Raises:
        UsageError: unknown model.
    """
    import transformers

    context = max(CONTEXT, seq_len)
    if model not in PRESETS:
        return _foreign_config(model, vocab_size, context)
    preset = PRESETS[model]
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": preset.hidden,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "intermediate_size": preset.intermediate,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if preset.family == "llama":
        return transformers.LlamaConfig(num_key_value_heads=preset.heads, rms_norm_eps=1e-5, **common)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    return transformers.GPTNeoXConfig(rope_parameters=rope, use_parallel_residual=True, **common)


def _foreign_config(model: str, vocab_size: int, context: int) -> Any:
    import transformers

    if "/" not in model and not Path(model).is_dir():
        close = difflib.get_close_matches(model, PRESETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(PRESETS)}"
        raise UsageError(f"unknown model {model!r}; {hint} (or give a folder or hub name with a config.json)")
    try:
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
            raise UsageError(f"model {model} is a {config.model_type}, not a causal language model; give another")
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config)
    except UsageError:
        raise
    except Exception as error:  # whatever a stranger's file makes its parsers and checks raise
        raise UsageError(f"cannot load the configuration of model {model}: {_in_short(error)}") from None
    config.vocab_size = vocab_size
    config.use_cache = False
    # Its embedding would never be trained, and here the id is some other tokenizer's padding.
    config.pad_token_id = None
    if (getattr(config, "max_position_embeddings", None) or 0) < context:
        config.max_position_embeddings = context
    return config


def build_model(config: Any, seed: int, device: torch.device) -> nn.Module:
    """A freshly initialised model in fp32. The seed alone decides its weights."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)  # takes SDPA where the architecture has it
    return model.float().train().to(device)


def load_model(folder: str, device: torch.device) -> nn.Module:
    """A trained model out of a Hugging Face folder, in fp32. Only safetensors are read, and no code of the folder is run.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    import transformers

    try:
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    except Exception as error:  # as above
        raise UsageError(f"cannot load the model of {folder}: {_in_short(error)}") from None
    return model.to(device)


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def checkpoint_activations(model: nn.Module) -> None:
    """Keep the inputs of blocks only, and compute the rest again in the backward pass."""
    # The name changed within transformers 5.
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """In order: the longest module list."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    assert lists, "the model has no list of blocks"
    return max(lists, key=len)


def parameter_counts(config: Any) -> tuple[int, int]:
    """(all, non-embedding) parameters, without allocating any."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    embeddings = {id(model.get_input_embeddings().weight): model.get_input_embeddings().weight.numel()}
    embeddings |= {id(model.get_output_embeddings().weight): model.get_output_embeddings().weight.numel()}
    return total, total - sum(embeddings.values())
