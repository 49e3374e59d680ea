"""Makes the options of a command from the fields of settings classes, and settings from the values of the options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from fractions import Fraction
from typing import Any

import typer

from acodm_cli.errors import UsageError
from acodm_cli.settings import Declared, declared

# The option of a setting of this type takes NAME=VALUE, and may be given several times.
_PAIRS = dict[str, str]
# How the option of a number is shown in `--help`.
_NUMBERS: dict[Any, str] = {int: "N", float: "X"}
_SIZES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Given:
    """What the user gave. values: of all options that have one, by name. named: the options that are on the command line."""

    values: dict[str, Any]
    named: set[str]

    def of(self, settings: type) -> dict[str, Any]:
        """Returns the values of a settings class's fields, in their types. Options without a value are left out.

        Raises:
            UsageError: an option is not NAME=VALUE where it should be.
        """
        found = {}
        for name, each in declared(settings).items():
            value = self.values.get(name)
            if value is not None:
                found[name] = _value(each, value)
        return found


def takes(
    *settings: type, command: str, defaults: dict[str, Any] | None = None
) -> Callable[[Callable[[Given], None]], Callable[..., None]]:
    """Decorates the function of a command with an option for every field of these settings classes that the command has.

    Typer reads options from the signature of a function, so this makes one. defaults: the command's own default values,
    by the name of the field.
    """
    own = defaults or {}
    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for kind in settings:
        for name, each in declared(kind).items():
            if each.option is not None and command in (each.commands or (command,)):
                parameters.append(_parameter(each, own.get(name, each.default)))

    def decorate(function: Callable[[Given], None]) -> Callable[..., None]:
        def call(*, context: typer.Context, **values: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in values}
            named = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
            function(Given(values, named))

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        call.__doc__, call.__name__ = function.__doc__, function.__name__
        return call

    return decorate


def _parameter(each: Declared, default: Any) -> inspect.Parameter:
    assert each.option is not None
    # Choices are texts to Typer: what is not one of them is refused by the settings, in their words.
    # So are numbers, of which Typer's own messages name the library that read them.
    is_number = each.kind in _NUMBERS
    kind: Any = str if each.choices or is_number else each.kind
    if is_number and default is not None:
        default = str(default)
    text, shown = each.documentation, "|".join(each.choices) or _NUMBERS.get(each.kind)
    if each.kind == _PAIRS:
        kind = list[str]
    elif each.several:
        kind, default = list[str], None
    if default is MISSING:
        option = typer.Argument(help=text)
    else:
        option = typer.Option(default, each.option, help=text, metavar=shown, rich_help_panel=each.panel or None)
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option,
        annotation=kind if default is not None else kind | None,
    )


def _value(each: Declared, given: Any) -> Any:
    """Returns what was given in the type of the setting. Raises UsageError if it cannot be."""
    if each.kind == _PAIRS:
        return _pairs(each, given)
    if each.several:
        return tuple(given)
    if each.kind in _NUMBERS and isinstance(given, str):
        try:
            return _unscaled(given) if each.scaled else each.kind(given)
        except ValueError:
            raise UsageError(f"{each.option} {given}; {each.refusal(given)}") from None
    return given


def _unscaled(text: str) -> int:
    """Returns the whole number that is written with or without a letter for its size. Raises ValueError if it is none."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.upper())
    number = Fraction(parts[1]) * _SIZES[parts[2]] if parts else None
    if number is None or number.denominator != 1:
        raise ValueError(text)
    return int(number)


def _pairs(each: Declared, texts: list[str]) -> dict[str, str] | None:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{each.option} {text} is not NAME=VALUE")
        if name.strip() in pairs and each.name == "map":  # names may hold `=`; `read_map` finds where to cut
            name, value = text, ""
        if name.strip() in pairs:
            raise UsageError(f"{each.option} {name.strip()} is given twice; give it once")
        pairs[name.strip()] = value.strip()
    return pairs or None
