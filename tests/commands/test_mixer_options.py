from __future__ import annotations

from acodm_cli.mixing.catalog import MIXERS
from tests.command_line import acodm


def test_options_of_every_mixer_are_listed() -> None:
    for name in MIXERS:
        outcome = acodm("proxy-train", "--mixer", name, "--mixer-option", "help")
        assert outcome.code == 0, outcome.stderr
        assert outcome.stdout.strip()
    assert "η of the mirror ascent" in acodm("proxy-train", "--mixer-option", "help").stdout
    assert (
        acodm("proxy-train", "--mixer", "natural", "--mixer-option", "help").stdout == "mixer natural has no options\n"
    )
    paper = acodm("proxy-train", "--agent", "paper", "--mixer-option", "help").stdout
    assert "1024" in paper
