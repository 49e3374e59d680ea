"""The trained model on disk: a standard Hugging Face checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import AcodmError
from acodm_cli.runs.folder import results_of
from acodm_cli.writing import atomic_folder, why_not_written


def save_model(model: nn.Module, weights: dict[str, Any], tokenizer: Tokenizer, seq_len: int, folder: Path) -> None:
    """Writes a model and its tokenizer, as they were trained. The folder is complete or not there at all. What was measured of
    a model that it replaces is removed.

    weights: those of the whole model. seq_len: the length of the sequences it was trained with, which the files give as the
    longest that it takes.

    Raises:
        AcodmError: the folder could not be written.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # It would be drawn into our own display.
    config: Any = model.config
    end = tokenizer.end_of_document
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    trained = {"use_cache": True, "max_position_embeddings": seq_len, **special}
    before = {name: getattr(config, name, None) for name in trained}
    generation: Any = getattr(model, "generation_config", None)
    try:
        for name, value in trained.items():
            setattr(config, name, value)
        if generation is not None:
            model.generation_config = transformers.GenerationConfig(**special)  # type: ignore[assignment]
        with atomic_folder(folder) as partial:
            model.save_pretrained(partial, state_dict=weights)  # type: ignore[operator]
            _save_tokenizer(tokenizer, seq_len, partial)
            results_of(folder).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        why = why_not_written(error, folder.parent, sum(tensor.nbytes for tensor in weights.values()))
        raise AcodmError(f"cannot write the model to {folder}: {why}; make room and use --resume") from None
    finally:
        for name, earlier in before.items():
            setattr(config, name, earlier)
        if generation is not None:
            model.generation_config = generation


def _save_tokenizer(tokenizer: Tokenizer, seq_len: int, folder: Path) -> None:
    """Writes a tokenizer that gives the tokens of training: without a template that would add others. Documents were
    only separated, so the token that ended them begins and pads them, too."""
    import tokenizers
    import transformers

    definition = json.loads(tokenizer.backend.to_str())
    definition["post_processor"] = _without_templates(definition.get("post_processor"))
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(definition)),
        bos_token=tokenizer.end_text,
        eos_token=tokenizer.end_text,
        pad_token=tokenizer.end_text,
        model_max_length=seq_len,
    )
    saved.save_pretrained(folder)


def _without_templates(processor: Any) -> Any:
    """A post-processor of a tokenizer's definition, without what adds tokens."""
    if not isinstance(processor, dict) or processor.get("type") == "ByteLevel":
        return processor
    if processor.get("type") == "Sequence":
        kept = [part for part in map(_without_templates, processor.get("processors", [])) if part is not None]
        return {**processor, "processors": kept} if kept else None
    return None
