"""Digests of what a schedule file holds: a flipped bit must not become another mixture or another policy.

The file's metadata have them as `acodm.sha256`: JSON with a digest of the description, of the policy, of each column, and of
these digests themselves. Files that were written before have none, and are read all the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = b"acodm.sha256"
_LENGTH = 16
_LARGEST = 1 << 20


def digests_of(info: bytes, policy: bytes | None, columns: Mapping[str, NDArray[Any]]) -> str:
    """Returns the digests of a schedule as JSON. info: the description, as JSON. columns: [S] or [S, K] each."""
    found = {"info": _digest(info), "policy": _digest(policy or b"")}
    found |= {f"column {name}": _digest(_bytes(values)) for name, values in columns.items()}
    return json.dumps({"of": found, "all": _of_all(found)}, sort_keys=True)


def what_differs(stored: bytes, info: bytes, policy: bytes | None, columns: Mapping[str, NDArray[Any]]) -> str | None:
    """Returns what of a schedule is not what was written, None if nothing is. stored: what `digests_of` returned. columns:
    those that were read; others are not looked at."""
    try:
        value: Any = json.loads(stored) if len(stored) <= _LARGEST else None
        found, whole = value["of"], value["all"]
        if whole != _of_all(found):
            return "digest"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "digest"
    parts = [("info", info), ("policy", policy or b"")]
    parts += [(f"column {name}", _bytes(values)) for name, values in columns.items()]
    for name, content in parts:
        if found.get(name) != _digest(content):
            return {"info": "description"}.get(name, name)
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_LENGTH]


def _of_all(found: dict[str, str]) -> str:
    return _digest(json.dumps(found, sort_keys=True).encode())


def _bytes(values: NDArray[Any]) -> bytes:
    """The bytes of a column in one form: little-endian, and with one NaN for all that is missing."""
    if values.dtype.kind == "f":
        values = values.astype("<f4")
        return np.where(np.isnan(values), np.float32(np.nan), values).astype("<f4").tobytes()
    return values.astype("<i8").tobytes()
