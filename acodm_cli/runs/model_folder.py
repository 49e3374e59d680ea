"""The trained model on disk: a standard Hugging Face checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from acodm_cli.corpus.tokenizer import Tokenizer
from acodm_cli.errors import AcodmError
from acodm_cli.writing import atomic_folder, in_short


def save_model(model: nn.Module, weights: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a model and its tokenizer. The folder is complete or not there at all. weights: those of the whole model.

    Raises:
        AcodmError: the folder could not be written.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # It would be drawn into our own display.
    try:
        with atomic_folder(folder) as partial:
            model.save_pretrained(partial, state_dict=weights)  # type: ignore[operator]
            end = tokenizer.backend.id_to_token(tokenizer.end_of_document)
            saved = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=end)
            saved.save_pretrained(partial)
    except (OSError, SafetensorError) as error:
        raise AcodmError(f"cannot write the model to {folder}: {in_short(error)}; make room and use --resume") from None
