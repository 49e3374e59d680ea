"""The exports by name."""

from __future__ import annotations

from importlib import import_module
from typing import cast, get_args

from acodm_cli.config import ExportName
from acodm_cli.exports.plan import Exporter

EXPORTS: tuple[ExportName, ...] = get_args(ExportName)


def exporter(name: ExportName) -> Exporter:
    return cast(Exporter, import_module(f"acodm_cli.exports.{name.replace('-', '_')}"))
