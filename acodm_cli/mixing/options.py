"""Makes a mixer's own settings from NAME=VALUE texts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from acodm_cli.errors import UsageError
from acodm_cli.settings import Declared, check, declared

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class NoSettings:
    """The settings of a mixer that has none."""


def with_options(defaults: Settings, options: dict[str, str] | None, mixer: str) -> Settings:
    """Returns a copy of the settings (a dataclass) with some of them replaced.

    options: the new values, as texts by the name of the setting. mixer: the name of the mixer, for messages.

    Raises:
        UsageError: an option is not a setting, or its value does not have the setting's type or is out of its range.
    """
    known = declared(type(defaults))  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, text in (options or {}).items():
        if name not in known:
            names = f"known: {', '.join(known)}" if known else "it has none"
            raise UsageError(f"mixer {mixer} has no option {name!r}; {names}")
        try:
            changes[name] = parsed(text, known[name])
        except ValueError:
            raise UsageError(f"option {name}={text} of mixer {mixer} is not {described(known[name])}") from None
    try:
        changed = replace(defaults, **changes)  # type: ignore[type-var]
        check(changed)
    except ValueError as error:
        raise UsageError(f"mixer {mixer}: {error}") from None
    return changed


def parsed(text: str, setting: Declared) -> Any:
    """Returns the value of a text. Raises ValueError if the text does not have the setting's type."""
    if setting.optional and text.lower() == "none":
        return None
    if setting.kind is bool:
        return ("false", "true").index(text.lower()) == 1
    if setting.kind in (int, float):
        value = setting.kind(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    if setting.choices and text not in setting.choices:
        raise ValueError(text)
    return text


def described(setting: Declared) -> str:
    """Returns what the values of a setting are, for messages."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    known = names.get(setting.kind) or "one of " + ", ".join(setting.choices)
    return f"{known} or none" if setting.optional else known
