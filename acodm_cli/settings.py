"""How a setting is declared: once, as a field of a small dataclass, with everything that is known about it beside it.

    steps: int = setting(300, least=1)
    \"\"\"The number of optimiser steps.\"\"\"

The command line, `--help`, the stored run and the checks of a value all read these fields. The text of `--help` is the
string under the field. This module imports nothing heavy, so `acodm --help` stays fast.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from acodm_cli.errors import UsageError


def setting(
    default: Any = MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[str] = (),
    flag: str | None = "",
    commands: tuple[str, ...] = (),
    changeable: bool = False,
    scaled: bool = False,
    panel: str = "",
) -> Any:
    """Declares one field of a settings class.

    least, most: the range of a number, both ends included. above, below: the range with the ends left out. choices: the
    texts that are allowed, where the type is not a Literal, which lists them itself. flag: the option's name on the
    command line; empty for the field's own name with dashes, None for no option. commands: the commands that have the
    option; empty for all. changeable: whether the setting may be changed when the run is resumed, because it does not
    change what the run computes (but for rounding). scaled: whether the command line takes a letter for the size of a whole number, as in
    1.5T. panel: the heading in `--help`; empty for the PANEL of the class.
    """
    metadata = {
        "least": least,
        "most": most,
        "above": above,
        "below": below,
        "choices": tuple(choices),
        "flag": flag,
        "commands": commands,
        "changeable": changeable,
        "scaled": scaled,
        "panel": panel,
    }
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


# No number is larger, infinities included; NaN is not smaller either.
_LARGEST = 2**63


@dataclass(frozen=True)
class Declared:
    """What is known about one setting.

    kind: its type, without None. optional: whether it may be None. default: its default value, MISSING if it must be
    given. documentation: the string under the field. The other fields are as in `setting`.
    """

    name: str
    kind: Any
    optional: bool
    default: Any
    documentation: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    flag: str | None = ""
    commands: tuple[str, ...] = ()
    changeable: bool = False
    scaled: bool = False
    panel: str = ""

    @property
    def option(self) -> str | None:
        """The option's name on the command line, None if it has none."""
        return f"--{self.name.replace('_', '-')}" if self.flag == "" else self.flag

    @property
    def several(self) -> bool:
        """Whether the setting takes several texts; such a setting has an empty tuple for its default."""
        return self.default == ()

    def refusal(self, value: Any) -> str | None:
        """Returns what to give instead of this value, None if the value is allowed."""
        if value is None and self.optional:
            return None
        if self.choices:
            if self.several and not isinstance(value, (tuple, list)):
                return f"give a tuple of {', '.join(self.choices)}"
            odd = {str(each) for each in (value if self.several else [value])} - set(self.choices)
            close = difflib.get_close_matches(str(min(odd, default="")), self.choices, n=1)
            hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(self.choices)}"
            return hint if odd else None
        if self.kind not in (int, float):
            return None
        if isinstance(value, bool) or not isinstance(value, Integral if self.kind is int else Real):
            return f"give {'a whole number' if self.kind is int else 'a number'}" + ", such as 300B" * self.scaled
        number: Any = value
        inside = (
            abs(number) < _LARGEST
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )
        return None if inside else f"give {self._range()}"

    def _range(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        if self.least is not None and self.most is not None:
            return f"{what} from {self.least:g} to {self.most:g}"
        if self.least is not None and self.below is not None:
            return f"{what} from {self.least:g} to below {self.below:g}"
        if self.above is not None and self.most is not None:
            return f"{what} above {self.above:g}, at most {self.most:g}"
        if self.above is not None:
            return f"{what} above {self.above:g}" + (", or none" if self.optional else "")
        return f"{what} of at least {self.least:g}" if self.least is not None else what


@cache
def declared(settings: type) -> dict[str, Declared]:
    """Returns the settings of a settings class by name, in order. Those of its base classes come first."""
    types = get_type_hints(settings)
    texts = documentation(settings)
    found = {}
    for each in fields(settings):
        kinds = [kind for kind in get_args(types[each.name]) if kind is not type(None)]
        optional = type(None) in get_args(types[each.name])
        kind = kinds[0] if optional and len(kinds) == 1 else types[each.name]
        known = dict(each.metadata)
        if get_origin(kind) is Literal:
            known["choices"] = get_args(kind)
        owner = next(base for base in settings.__mro__ if each.name in vars(base).get("__annotations__", {}))
        known["panel"] = known.get("panel") or getattr(owner, "PANEL", "")
        found[each.name] = Declared(each.name, kind, optional, each.default, texts.get(each.name, ""), **known)
    return found


@cache
def documentation(settings: type) -> dict[str, str]:
    """Returns the string under each field of a dataclass and of its bases, by the field's name."""
    texts: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue  # The class was typed into an interpreter, which keeps no source.
        for statement, after in pairwise(tree.body[0].body):  # type: ignore[attr-defined]
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(statement.target, ast.Name)
                assert isinstance(after.value, ast.Constant)
                texts[statement.target.id] = " ".join(str(after.value.value).split())
    return texts


def check(settings: Any, shown: Callable[[Declared, Any], str] = lambda each, value: f"{each.name} = {value}") -> None:
    """Raises ValueError for the first value that its field does not allow. shown: names the setting in the message."""
    for name, each in declared(type(settings)).items():  # type: ignore[arg-type]
        value = getattr(settings, name)
        if (refusal := each.refusal(value)) is not None:
            raise ValueError(f"{shown(each, as_given(value))}; {refusal}")


def check_options(settings: Any) -> None:
    """Raises UsageError for the first value that its field does not allow, named as on the command line."""
    try:
        check(settings, lambda each, value: f"{each.option or each.name} {value}")
    except ValueError as error:
        raise UsageError(str(error)) from None


def as_given(value: Any) -> Any:
    """Returns a value as the user writes it: several texts, or pairs of NAME=VALUE, with commas between them."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
