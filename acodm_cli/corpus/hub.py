"""Documents of a Hugging Face dataset, streamed with `datasets`: neither the hub's files nor the text are kept whole.

Datasets that are code are refused by `datasets` itself; nothing of a stranger is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acodm_cli.corpus.readers import Document, document_of, parquet_batches
from acodm_cli.corpus.sources import VALIDATION_WORDS, HubSource
from acodm_cli.errors import UsageError


def source_key(source: HubSource) -> str:
    """Of what will be streamed: the dataset's revision on the hub, or the files of a local one."""
    folder = Path(source.dataset)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        stats = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(repr((stats, source.config, source.split)).encode()).hexdigest()
    return repr((source.dataset, source.config, source.split, source.validation_split, _revision(source)))


def _revision(source: HubSource) -> str:
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(source.dataset, revision=source.revision).sha or "unknown"
    except Exception as error:  # the hub's errors have no common base
        raise UsageError(_reason(source, error)) from None


def _reason(source: HubSource, error: Exception) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"cannot stream dataset {source.dataset}: {text}; check its name, config and split, and the network"


class HubDocuments:
    """The splits of a source."""

    def __init__(self, source: HubSource) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.source = source
        try:
            self.builder = datasets.load_dataset_builder(source.dataset, source.config, revision=source.revision)
            splits = datasets.get_dataset_split_names(source.dataset, source.config, revision=source.revision)
        except Exception as error:
            raise UsageError(_reason(source, error)) from None
        self.validation_split = source.validation_split or next((w for w in VALIDATION_WORDS if w in splits), None)

    def read(self, split: str) -> Iterator[Document]:
        """Raises UsageError if the stream breaks, or a record lacks a field."""
        source = self.source
        try:
            for row, record in enumerate(self._records(split)):
                yield document_of(record, source.fields, lambda row=row: f"dataset {source.dataset}, {split} row {row}")  # type: ignore[misc]
        except (UsageError, GeneratorExit):
            raise
        except Exception as error:  # whatever the network, a file system or a reader of datasets raises
            raise UsageError(_reason(source, error)) from None

    def _records(self, split: str) -> Iterator[Any]:
        files = (self.builder.config.data_files or {}).get(split)
        if self.builder.name != "parquet" or not files:
            yield from self.builder.as_streaming_dataset(split=split)
            return
        # The files that `datasets` found, through our own reader: Arrow's dataset scanner, which `datasets` uses, reads ahead
        # without bounds when rows are taken slowly.
        import fsspec

        for file in files:
            with fsspec.open(file, "rb") as stream:
                for batch, _ in parquet_batches(stream, f"dataset {self.source.dataset}", self.source.fields):
                    yield from batch.to_pylist()
