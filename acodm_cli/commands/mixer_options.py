"""`--mixer-option help`: the settings of a mixer that the option changes."""

from __future__ import annotations

from rich.table import Table

from acodm_cli.display.style import Output
from acodm_cli.errors import UsageError
from acodm_cli.mixing.catalog import mixer_class
from acodm_cli.mixing.settings import MixingSettings
from acodm_cli.settings import declared


def print_mixer_options(mixer: str, preset: str) -> None:
    """Prints name, default and text of every setting. preset: the name of the preset of the agent's settings.

    Raises:
        UsageError: there is no such mixer, or no such preset.
    """
    kind = mixer_class(mixer)
    agents = declared(MixingSettings)["agent"].choices
    if preset not in agents:
        raise UsageError(f"there is no --agent {preset}; known: {', '.join(agents)}")
    defaults = kind.default_settings(preset)
    table = Table("name", "default", "what it is", box=None, pad_edge=False, header_style="bold")
    for name, each in declared(type(defaults)).items():  # type: ignore[arg-type]
        table.add_row(name, str(getattr(defaults, name)).lower(), each.documentation)
    Output().print(table if table.rows else f"mixer {mixer} has no options")
