"""All exports by name. To add an export, add a new file and one line here.

An entry is a module that offers what `plan.Exporter` describes. It is imported when it is asked for.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acodm_cli.exports.plan import Exporter

EXPORTS = {
    "levanter": "acodm_cli.exports.levanter",
    "megatron": "acodm_cli.exports.megatron",
    "megatron-bridge": "acodm_cli.exports.megatron_bridge",
    "gpt-neox": "acodm_cli.exports.gpt_neox",
    "maxtext": "acodm_cli.exports.maxtext",
    "mosaicml": "acodm_cli.exports.mosaicml",
    "olmo-core": "acodm_cli.exports.olmo_core",
    "nanotron": "acodm_cli.exports.nanotron",
    "torchtitan": "acodm_cli.exports.torchtitan",
    "torchtitan-grain": "acodm_cli.exports.torchtitan_grain",
    "json": "acodm_cli.exports.json",
    "csv": "acodm_cli.exports.csv",
}


def exporter(name: str) -> Exporter:
    """Returns the export with this name."""
    module: Exporter = resolve_name(EXPORTS[name])
    return module
