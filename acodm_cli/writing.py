"""Names of what is being written, and what is said when it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acodm_cli.errors import AcodmError


def partial_prefix(path: Path) -> str:
    """Of the names beside a file or folder, under which it is made before it gets its own."""
    return f".{path.name}.acodm-"


def partials_of(path: Path) -> list[Path]:
    """What processes that were killed have left of making it."""
    parent = path.absolute().parent
    return [other for other in parent.iterdir() if other.name.startswith(partial_prefix(path))]


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Raises AcodmError for the OSError of writing to the cache."""
    try:
        yield
    except OSError as error:
        raise AcodmError(
            f"cannot write the token cache in {folder}: {error.strerror or error}; make room or use --cache-dir"
        ) from None
