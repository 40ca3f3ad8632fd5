"""Durations and times as people write and read them: ``90s``, ``10m``, ``24h``, ``7d``."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from kdispatch.setup_error import SetupError

__all__ = ["METAVAR", "moment", "seconds_of", "written"]

METAVAR: Final = "TIME"

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: Twelve digits suffice for any duration, and limit the size of the number.
_DURATION: Final = re.compile(r"([0-9]{1,12})([smhd])")


def seconds_of(option: str, typed: str, least: str, most: str) -> int:
    """Parse a duration into seconds; raises ``bad_request`` if it is invalid or out of bounds.

    ``option`` is the option's name; the bounds are the relay's, in the same notation.
    """
    match = _DURATION.fullmatch(typed.strip().lower())
    if match is None:
        raise SetupError(
            "bad_request",
            f"{option} is {typed[:80]!r}, which is not a duration.",
            hint="Write a whole number and s, m, h or d: 90s, 10m, 24h, 7d.",
        )
    seconds = _seconds(match)
    if not _seconds(_DURATION.fullmatch(least)) <= seconds <= _seconds(_DURATION.fullmatch(most)):
        raise SetupError("bad_request", f"{option} is {typed[:80]!r}.", hint=f"Write a time from {least} to {most}.")
    return seconds


def _seconds(match: re.Match[str] | None) -> int:
    assert match is not None
    return int(match[1]) * _UNITS[match[2]]


def written(seconds: int) -> str:
    """Format seconds as a duration, in the largest exact unit."""
    unit, size = next((unit, size) for unit, size in reversed(_UNITS.items()) if seconds % size == 0)
    return f"{seconds // size}{unit}"


def moment(when: datetime | None) -> str:
    """A time as relays write it (RFC 3339, UTC); empty for ``None``."""
    return "" if when is None else when.strftime("%Y-%m-%dT%H:%M:%SZ")
