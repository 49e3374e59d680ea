"""Streams the documents of a Hugging Face dataset with `datasets`: neither the hub's files nor the text are kept whole.

`datasets` itself refuses datasets that are code, so no stranger's code is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from acodm_cli.corpus.readers import Document, document_of, parquet_batches
from acodm_cli.corpus.sources import VALIDATION_WORDS, HubSource
from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import atomic_file, cache_errors, in_short


def pinned(source: HubSource, cache: Path) -> HubSource:
    """Returns the source with the revision that its name stands for now or, without the network, stood for last time.

    Raises:
        UsageError: the dataset is not there, or its validation split is the split that it is trained on.
    """
    if source.validation_split == source.split:
        raise UsageError(f"dataset {source.dataset}: split {source.split} cannot be its own validation_split")
    if Path(source.dataset).is_dir():
        return source
    record = cache / "hub" / hashlib.sha256(repr((source.dataset, source.revision)).encode()).hexdigest()[:24]
    try:
        revision = _revision(source)
    except UsageError:
        if not record.is_file():
            raise
        return replace(source, revision=record.read_text())
    with cache_errors(cache):
        record.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(record) as file:
            file.write(revision.encode())
    return replace(source, revision=revision)


def identity(source: HubSource) -> str:
    """A text that identifies what will be streamed. source: as `pinned` returns it."""
    folder = Path(source.dataset)
    which: Any = (source.dataset, source.revision)
    if folder.is_dir():
        which = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                which.append((str(path.relative_to(folder)), hashlib.file_digest(file, "sha256").hexdigest()))
    return repr((which, source.config, source.split, source.validation_split))


def _revision(source: HubSource) -> str:
    import huggingface_hub

    try:
        revision = huggingface_hub.HfApi().dataset_info(source.dataset, revision=source.revision).sha
    except AcodmError:
        raise
    except Exception as error:  # the hub's errors have no common base class
        raise UsageError(_reason(source, error)) from None
    assert revision is not None
    return revision


def _reason(source: HubSource, error: Exception) -> str:
    return (
        f"cannot stream dataset {source.dataset}: {in_short(error)}; check its name, config and split, and the network"
    )


class HubDocuments:
    """The documents of a source, by split. validation_split: the split to validate on, None if the dataset has none."""

    def __init__(self, source: HubSource) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.source = source
        try:
            self.builder = datasets.load_dataset_builder(source.dataset, source.config, revision=source.revision)
            splits = datasets.get_dataset_split_names(source.dataset, source.config, revision=source.revision)
        except AcodmError:
            raise
        except Exception as error:
            raise UsageError(_reason(source, error)) from None
        others = [word for word in VALIDATION_WORDS if word in splits and word != source.split]
        self.validation_split = source.validation_split or next(iter(others), None)

    def read(self, split: str) -> Iterator[Document]:
        """Yields the documents of a split. Raises UsageError if the stream breaks, or a record lacks a field."""
        source = self.source
        try:
            for row, record in enumerate(self._records(split)):
                yield document_of(record, source.fields, lambda row=row: f"dataset {source.dataset}, {split} row {row}")  # type: ignore[misc]
        except (AcodmError, GeneratorExit):
            raise
        except Exception as error:  # the network, file systems and readers of `datasets` raise errors of many kinds
            raise UsageError(_reason(source, error)) from None

    def _records(self, split: str) -> Iterator[Any]:
        files = (self.builder.config.data_files or {}).get(split)
        if self.builder.name != "parquet" or not files:
            yield from self.builder.as_streaming_dataset(split=split)
            return
        # Our own reader reads the files that `datasets` found: Arrow's dataset scanner, which `datasets` uses, reads
        # ahead without bounds when rows are taken slowly.
        import fsspec

        for file in files:
            with fsspec.open(file, "rb") as stream:
                for batch, _ in parquet_batches(stream, f"dataset {self.source.dataset}", self.source.fields):
                    yield from batch.to_pylist()
