"""Headers of pages are read by us, so what they claim must end."""

from __future__ import annotations

import pytest

from acodm_cli.schedule.pages import _Header


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x19\xf7" + varint(2**62), "is cut"),  # so many doubles
        (b"\x18" + varint(2**62), "is cut"),  # so long a text
        (b"\x17", "is cut"),
        (b"\x19" * 5000, "nested too deeply"),
        (b"\x1c" * 5000, "nested too deeply"),
    ],
)
def test_what_a_header_claims_ends(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _Header(content).fields()
