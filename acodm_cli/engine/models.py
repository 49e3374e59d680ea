"""Builds causal language models. The configurations that ship with acodm need no hub access."""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from acodm_cli.errors import UsageError
from acodm_cli.writing import in_short


@dataclass(frozen=True)
class Preset:
    """The shape of a model. lr: its peak learning rate (Pythia: 2304.01373, table of the suite's hyperparameters)."""

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
# Of what a configuration may ask for; the largest models stay far below.
_LARGEST = {"hidden_size": 2**17, "num_hidden_layers": 1000, "num_attention_heads": 2**12}
DEFAULT_LR = 3e-4
# The name of SDPA without masks, see `attend_causally`. transformers makes a mask only for attention that it knows.
_CAUSAL = "acodm_causal"
# Settings that say how a model is computed. A file may name code on the hub there, and transformers would fetch and run it.
_CHOSEN_HERE = ("_attn_implementation", "_experts_implementation")
# These name other files of weights, or a library that loads them.
_REFUSED = ("transformers_weights", "quantization_config")
_WINDOWS = ("sliding_window", "attention_chunk_size")
# A run that goes on with trained weights warms up again to this share of the peak of a fresh one: enough to learn what is new, without
# the forgetting of a whole one (as the lower peaks of 2403.08763, section 6).
CONTINUED_LR_SHARE = 0.3


def default_lr(config: Any, fresh: bool) -> float:
    """Returns the default peak learning rate: the published one of the preset with the same numbers of layers and hidden units,
    DEFAULT_LR for other models; a share of it where the weights are not fresh. config: of the model."""
    shape = (getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None))
    published = next((each.lr for each in PRESETS.values() if (each.layers, each.hidden) == shape), DEFAULT_LR)
    return published if fresh else CONTINUED_LR_SHARE * published


def model_config(model: str, vocab_size: int, seq_len: int) -> Any:
    """Makes a transformers configuration. model: a preset, or a folder or hub name whose configuration is used with
    this vocabulary.

    Raises:
        UsageError: the model is not known, or its configuration cannot be used.
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
    if "/" not in model and not Path(model).is_dir():
        close = difflib.get_close_matches(model, PRESETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(PRESETS)}"
        raise UsageError(f"unknown model {model!r}; {hint} (or give a folder or hub name with a config.json)")
    config = read_config(model)
    config.vocab_size = vocab_size
    config.use_cache = False
    # The embedding of a padding token is never trained, but the id is padding only to some other tokenizer.
    config.pad_token_id = None
    if (getattr(config, "max_position_embeddings", None) or 0) < context:
        config.max_position_embeddings = context
    return config


def read_config(model: str) -> Any:
    """Returns the transformers configuration of a folder or hub name, as it is there.

    Raises:
        UsageError: it cannot be read, or is not of a causal language model.
    """
    import transformers

    # A model within a model is built without trust_remote_code, and asks, in words of the file, whether to run the file's code.
    transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        for name in _REFUSED:
            if any(getattr(part, name, None) for part in (config, config.get_text_config())):
                raise UsageError(
                    f"model {model}: its config.json has a {name}, which acodm does not follow; give another model"
                )
        for name in _CHOSEN_HERE:
            setattr(config, name, None)
        if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
            raise UsageError(f"model {model} is a {config.model_type}, not a causal language model; give another")
        _check_shape(model, config)
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config)
    except UsageError:
        raise
    except Exception as error:  # a stranger's file may make its parsers and checks raise anything
        raise UsageError(f"cannot load the configuration of model {model}: {in_short(error)}") from None
    return config


def _check_shape(model: str, config: Any) -> None:
    """Raises UsageError if a stranger's configuration has sizes that no model has; to build such a model could take hours."""
    for name, most in _LARGEST.items():
        value = getattr(config, name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise UsageError(f"model {model}: its {name} is {value!r:.40}; acodm builds models with 1 to {most:,}")


def check_causal(model: nn.Module, name: str, device: torch.device) -> None:
    """Raises UsageError if what comes later changes what a model predicts, as in BERT: its loss would mean nothing."""
    tokens_2T = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=device)
    model.eval()
    with torch.no_grad():
        logits_2TV = model(tokens_2T).logits
    model.train()
    if not torch.allclose(logits_2TV[0, :3], logits_2TV[1, :3], atol=1e-3, equal_nan=True):
        raise UsageError(
            f"model {name} sees the tokens that it is to predict (it is bidirectional); give a causal language model"
        )


def build_model(config: Any, seed: int, device: torch.device) -> nn.Module:
    """Builds a freshly initialised model in fp32. The seed alone decides its weights."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)  # takes SDPA where the architecture has it
    return model.float().train().to(device)


def checkpoint_activations(model: nn.Module) -> None:
    """Makes the model keep only the inputs of its blocks, and compute the rest again in the backward pass."""
    # The method's name changed within transformers 5.
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


@torch.no_grad()
def attend_causally(model: nn.Module, seq_len: int) -> None:
    """Lets attention be causal by a flag of SDPA, where that is all that the model's masks would say.

    Otherwise each forward pass looks for sequences that are packed into one, by values for which the host waits. The model can then
    no longer be given padded or packed sequences, of which training and validation have none. It stays as it is if its attention
    is not SDPA's, if it sees less than seq_len positions, or if its output would be another.
    """
    import transformers
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = model.config
    windows = [getattr(config, name, None) for name in _WINDOWS]
    if config._attn_implementation != "sdpa" or any(window is not None and window <= seq_len for window in windows):
        return
    transformers.AttentionInterface.register(_CAUSAL, ALL_ATTENTION_FUNCTIONS["sdpa"])
    tokens_1T = torch.arange(8, device=next(model.parameters()).device)[None] % config.vocab_size
    training = model.training
    model.eval()
    before_1TV = model(input_ids=tokens_1T, use_cache=False).logits
    config._attn_implementation = _CAUSAL
    same = False
    with suppress(KeyError, RuntimeError, TypeError, ValueError):  # of an architecture with ways of its own
        same = torch.equal(model(input_ids=tokens_1T, use_cache=False).logits, before_1TV)
    if not same:
        config._attn_implementation = "sdpa"
    model.train(training)


def has_dropout(model: nn.Module) -> bool:
    """Whether a model leaves out some of its values at random while it trains, by its configuration."""
    fields: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr, operator]
    # That of a classifier's head is a default of Pythia's configuration, which has no such head here.
    drops = {name: value for name, value in fields.items() if "drop" in name and not name.startswith("classifier")}
    return any(isinstance(value, float) and value > 0 for value in drops.values())


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model in order: its longest module list."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    assert lists, "the model has no list of blocks"
    return max(lists, key=len)
