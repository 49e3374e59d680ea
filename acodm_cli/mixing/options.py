"""Settings of a mixer out of NAME=VALUE strings."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from acodm_cli.errors import UsageError

Settings = TypeVar("Settings")


def with_options(defaults: Settings, options: dict[str, str] | None, mixer: str) -> Settings:
    """A copy of the settings (a dataclass) with some replaced.

    Raises:
        UsageError: an option that is not a setting, whose value does not have the setting's type, or that the settings refuse
            (their __post_init__ raises ValueError).
    """
    types = get_type_hints(type(defaults))
    names = [field.name for field in fields(defaults)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, text in (options or {}).items():
        if name not in names:
            known = f"known: {', '.join(names)}" if names else "it has none"
            raise UsageError(f"mixer {mixer} has no option {name!r}; {known}")
        try:
            changes[name] = _parse(text, types[name])
        except ValueError:
            raise UsageError(f"option {name}={text} of mixer {mixer} is not {_describe(types[name])}") from None
    try:
        return replace(defaults, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise UsageError(f"mixer {mixer}: {error}") from None


def _parse(text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(text)
        return text
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    (kind,) = (each for each in kinds if each is not type(None))
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    value = kind(text)
    return _refuse(text) if kind is float and not math.isfinite(value) else value


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    return " or ".join(names[each] for each in get_args(kind) or (kind,))
