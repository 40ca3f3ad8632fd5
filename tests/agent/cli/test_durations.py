"""Durations as users write them."""

from __future__ import annotations

import pytest

from kdispatch.cli.durations import seconds_of, written
from kdispatch.settings import SetupError


@pytest.mark.parametrize(
    ("typed", "seconds", "shown"),
    [
        ("90s", 90, "90s"), ("10m", 600, "10m"), ("24h", 86_400, "1d"), ("7d", 604_800, "7d"), (" 1H ", 3600, "1h"),
        ("0s", 0, "0d"), ("60m", 3600, "1h"), ("61s", 61, "61s"),
    ],
)  # fmt: skip
def test_what_is_one(typed: str, seconds: int, shown: str) -> None:
    """A whole number and a unit is that many seconds, and is written in the largest exact unit."""
    assert seconds_of("--expires", typed, "0s", "10d") == seconds
    assert written(seconds) == shown


@pytest.mark.parametrize(
    "typed", ["", "5", "h", "1.5h", "-1h", "1h30m", "2weeks", "1 h", "٣h", "9" * 13 + "s", "1h\n1"]
)
def test_what_is_none(typed: str) -> None:
    """Anything else is refused, with the option's name and the valid form."""
    with pytest.raises(SetupError) as caught:
        seconds_of("--expires", typed, "0s", "10d")
    assert (caught.value.code, "--expires" in caught.value.text) == ("bad_request", True)
    assert "90s, 10m, 24h, 7d" in caught.value.hint


def test_bounds() -> None:
    """The minimum and the maximum are accepted, and anything beyond is refused with both."""
    assert [seconds_of("--expires", typed, "60s", "10d") for typed in ("60s", "10d")] == [60, 864_000]
    for typed in ("59s", "241h"):
        with pytest.raises(SetupError) as caught:
            seconds_of("--expires", typed, "60s", "10d")
        assert (caught.value.code, caught.value.hint) == ("bad_request", "Write a time from 60s to 10d.")
