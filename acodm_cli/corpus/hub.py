"""Streams the documents of a Hugging Face dataset with `datasets`: neither the hub's files nor the text are kept whole.

`datasets` itself refuses datasets that are code, so no stranger's code is run. A dataset can name its files, in its README.md;
those that lie outside of it are refused, as are formats beyond plain tables and text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from acodm_cli.corpus.names import HELD_OUT_WORDS
from acodm_cli.corpus.readers import Item, item_of, items_of, parquet_batches
from acodm_cli.corpus.sources import HubSource
from acodm_cli.errors import AcodmError, UsageError
from acodm_cli.writing import atomic_file, cache_errors, in_short

# The readers of `datasets` that only read tables and text.
_BUILDERS = ("parquet", "json", "text", "csv", "arrow")


def pinned(source: HubSource, cache: Path) -> HubSource:
    """Returns the source with the revision that its name stands for now or, without the network, stood for last time.

    Raises:
        UsageError: the dataset is not there, or its validation split is the split that it is trained on.
    """
    if source.validation_split == source.split:
        raise UsageError(f"dataset {source.dataset}: split {source.split} cannot be its own validation_split")
    if Path(source.dataset).is_absolute():  # a local folder; see `sources`
        return source
    if Path(source.dataset).exists():  # `datasets` would take it instead of the hub's
        raise UsageError(
            f"dataset {source.dataset} is of the hub, but there is a folder of this name here; start acodm from elsewhere"
        )
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
    here = "" if Path(source.dataset).is_absolute() else ", which does not exist as a folder here"
    return f"cannot stream dataset {source.dataset}{here}: {in_short(error)}; check its name, config and split, and the network"


class HubDocuments:
    """The documents of a source, by split. validation_split: the split to validate on, None if the dataset has none."""

    def __init__(self, source: HubSource) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.source = source
        try:
            self.builder = datasets.load_dataset_builder(source.dataset, source.config, revision=source.revision)
            self._check_files()  # the names of splits may come from reading them
            splits = datasets.get_dataset_split_names(source.dataset, source.config, revision=source.revision)
        except AcodmError:
            raise
        except Exception as error:
            raise UsageError(_reason(source, error)) from None
        others = [word for word in HELD_OUT_WORDS if word in splits and word != source.split]
        self.validation_split = source.validation_split or next(iter(others), None)

    def _check_files(self) -> None:
        """Raises UsageError if the dataset is of a format, or names files, that it should not have."""
        source, name = self.source, self.builder.name
        if name not in _BUILDERS:
            raise UsageError(f"dataset {source.dataset} is of the format {name}; acodm reads {', '.join(_BUILDERS)}")
        for split, files in (self.builder.config.data_files or {}).items():
            for file in map(str, files):
                if not _is_inside(file, source.dataset, self.builder.repo_id):
                    raise UsageError(
                        f"dataset {source.dataset}: its {split} split names {file}, outside of the dataset"
                    )

    def read(self, split: str) -> Iterator[Item]:
        """Yields the documents of a split, and the records that cannot be used. Raises UsageError if the stream breaks."""
        source = self.source
        where = f"dataset {source.dataset}, {split}"
        files = (self.builder.config.data_files or {}).get(split)
        try:
            if self.builder.name == "parquet" and files:
                yield from self._of_parquet(files, where)
                return
            labels = self._labels()
            for row, record in enumerate(self._stream(split)):
                yield item_of(record, source.fields, f"{where} row {row}", labels)
        except (AcodmError, GeneratorExit):
            raise
        except Exception as error:  # the network, file systems and readers of `datasets` raise errors of many kinds
            raise UsageError(_reason(source, error)) from None

    def _stream(self, split: str) -> Any:
        """The records of a split. Of pictures and sounds it has paths, which are not opened."""
        return self.builder.as_streaming_dataset(split=split).decode(False)

    def _of_parquet(self, files: Iterable[str], where: str) -> Iterator[Item]:
        """Reads the files that `datasets` found with our own reader: Arrow's dataset scanner, which `datasets` uses, reads
        ahead without bounds when rows are taken slowly."""
        import fsspec

        row = 0
        for file in files:
            with fsspec.open(file, "rb") as stream:
                for batch, _ in parquet_batches(stream, f"dataset {self.source.dataset}", self.source.fields):
                    yield from items_of(batch, self.source.fields, where, row)
                    row += len(batch)

    def _labels(self) -> list[str] | None:
        """The names of the domains, if the dataset keeps them as numbers of a list."""
        features = self.builder.info.features or {}
        return getattr(features.get(self.source.fields.domain), "names", None)


def _is_inside(file: str, dataset: str, repository: str | None) -> bool:
    """Whether a file belongs to a dataset. repository: the dataset's present name on the hub, if it was renamed."""
    if Path(dataset).is_absolute():
        # What has :: is a file within another, wherever that is.
        return "::" not in file and "://" not in file and Path(file).resolve().is_relative_to(Path(dataset).resolve())
    ours = tuple(f"hf://datasets/{name}@".lower() for name in {dataset, repository or dataset})
    return file.lower().startswith(ours) and ".." not in file.split("/")
