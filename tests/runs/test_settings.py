from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest

import acodm_cli
from acodm_cli.commands.inspect_settings import InspectSettings
from acodm_cli.commands.options import Given
from acodm_cli.engine.settings import TrainSettings
from acodm_cli.errors import UsageError
from acodm_cli.runs.settings import RunSettings, StartSettings, StudySettings
from acodm_cli.settings import check, declared, setting
from tests.command_line import acodm


@dataclass(frozen=True)
class Example:
    """An example."""

    share: float = setting(0.5, least=0, below=1)
    """A share
    of something."""

    count: int | None = setting(None, least=1)
    name: str = setting("a", choices=("a", "b"))


def test_what_is_declared_is_known() -> None:
    share, count, name = declared(Example).values()
    assert (share.documentation, share.option, share.kind, share.optional) == (
        "A share of something.",
        "--share",
        float,
        False,
    )
    assert (count.documentation, count.kind, count.optional) == ("", int, True)
    assert name.choices == ("a", "b")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"share": 1.0}, "share = 1.0; give a number from 0 to below 1"),
        ({"share": float("nan")}, "share = nan; give"),
        ({"share": "0.5"}, "share = 0.5; give a number"),
        ({"count": 0}, "count = 0; give a whole number of at least 1"),
        ({"count": 1.5}, "count = 1.5; give a whole number"),
        ({"count": True}, "count = True; give a whole number"),
        ({"name": "c"}, "name = c; give one of a, b"),
    ],
)
def test_ranges_are_checked(values: dict[str, Any], says: str) -> None:
    check(Example())
    check(Example(share=0))
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        check(Example(**values))


def settings_classes() -> list[type]:
    """All dataclasses of the package that are named Settings."""
    found: dict[str, Any] = {}
    for module in walk_packages(acodm_cli.__path__, "acodm_cli."):
        if not module.name.endswith(("__main__", "tensorboard")):
            found |= {
                name: kind for name, kind in vars(import_module(module.name)).items() if name.endswith("Settings")
            }
    return [kind for kind in found.values() if isinstance(kind, type) and is_dataclass(kind)]


def test_every_setting_says_what_it_is() -> None:
    classes = settings_classes()
    assert {RunSettings, InspectSettings, StartSettings} <= set(classes)
    assert len(classes) > 12
    silent = [
        f"{kind.__name__}.{name}" for kind in classes for name, each in declared(kind).items() if not each.documentation
    ]
    assert not silent


def test_stored_settings_are_read_as_they_were() -> None:
    settings = RunSettings(command="apply", steps=7, map={"a": "b"}, track=("jsonl",), lr=1e-3, schedule="pile-natural")
    assert RunSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert set(settings.changed()) == {"command", "steps", "map", "track", "lr", "schedule"}
    with pytest.raises(ValueError, match="unknown or missing settings stepz"):
        RunSettings.from_json(settings.to_json() | {"stepz": 1})


def test_settings_of_python_are_checked_as_options_are() -> None:
    with pytest.raises(UsageError, match="--steps 0; give a whole number of at least 1"):
        RunSettings(steps=0)
    with pytest.raises(UsageError, match="--mixer \\?; give one of ac-odm, natural"):
        RunSettings(mixer="?")
    with pytest.raises(UsageError, match="--track excel; give one of jsonl"):
        RunSettings(track=("excel",))


@pytest.mark.parametrize("command", ["proxy-train", "apply", "inspect"])
def test_every_setting_is_an_option_with_its_text(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(acodm(command, "--help").stdout.replace("│", " ").split())
    kinds: list[type] = [InspectSettings] if command == "inspect" else [RunSettings, StartSettings]
    kinds += [StudySettings] if command == "proxy-train" else []
    for kind in kinds:
        for each in declared(kind).values():
            if each.option is None or command not in (each.commands or (command,)):
                continue
            assert each.option in shown or each.name == "schedules"
            assert each.documentation[:30] in shown


def test_the_engine_takes_its_group_as_it_is() -> None:
    assert issubclass(RunSettings, TrainSettings)
    assert {field.name for field in fields(TrainSettings)} <= {field.name for field in fields(RunSettings)}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("300B", 300 * 10**9), ("1.5t", 15 * 10**11), ("0.1m", 10**5), ("2k", 2000), ("12", 12), ("307200", 307_200)],
)
def test_a_budget_may_have_a_letter(text: str, tokens: int) -> None:
    assert Given({"for_tokens": text}, set()).of(TrainSettings) == {"for_tokens": tokens}


@pytest.mark.parametrize("text", ["", "B", "1.5", "1e9", "-3B", "3Q", "0.0001K", "1_000"])
def test_a_budget_is_a_whole_number(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--for-tokens {text}; give a whole number, such as 300B")):
        Given({"for_tokens": text}, set()).of(TrainSettings)


@pytest.mark.parametrize(("text", "steps"), [("10-12", (10, 12)), ("7", (7, 7))])
def test_steps_to_profile(text: str, steps: tuple[int, int]) -> None:
    assert StartSettings(out=Path("a.parquet"), profile=text).profiled == steps
    for wrong in ("0", "3-2", "-3", "a-b", "1-2-3", ""):
        with pytest.raises(UsageError, match=r"give a step or the first and the last one, as in 10-12"):
            StartSettings(out=Path("a.parquet"), profile=wrong)
