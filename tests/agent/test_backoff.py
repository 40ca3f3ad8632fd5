"""When an agent tries again: within bounds, spread, and patient only after failures in a row."""

from __future__ import annotations

import random

import pytest

from kdispatch.backoff import Backoff


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    random.seed(11)


def _most(spread: float, tries: int, samples: int = 400) -> float:
    """The longest wait of many agents after so many failures."""
    waits = []
    for _ in range(samples):
        backoff = Backoff()
        backoff.spread = spread
        for _ in range(tries):
            backoff.next_wait()
        waits.append(backoff.next_wait())
    assert min(waits) >= 0
    return max(waits)


def test_first_wait_is_within_the_spread() -> None:
    """After the end of a session a whole fleet comes back evenly over the relay's spread."""
    waits = []
    for _ in range(1000):
        backoff = Backoff()
        backoff.spread = 8.0
        waits.append(backoff.next_wait())
    quarters = [sum(low <= wait < low + 2 for wait in waits) for low in (0, 2, 4, 6)]
    assert sum(quarters) == 1000
    assert all(200 < quarter < 300 for quarter in quarters)


@pytest.mark.parametrize(("tries", "most"), [(0, 0.5), (1, 1.0), (3, 4.0), (5, 15.0), (40, 15.0), (2000, 15.0)])
def test_waits_double_up_to_a_bound(tries: int, most: float) -> None:
    """Each failure doubles what a wait may be, until it may be fifteen seconds."""
    assert 0.9 * most < _most(0.5, tries, 50 if tries > 100 else 400) <= most


def test_wide_spread_is_bounded() -> None:
    """However large a relay says its fleet is, nobody waits longer than the bound."""
    assert _most(500.0, 0) <= 15.0
    assert _most(500.0, 4) <= 15.0


def test_what_was_asked_for_comes_on_top() -> None:
    """A wait that the relay asked for is never cut short, and is spread as well."""
    waits = [Backoff().next_wait(20.0) for _ in range(200)]
    assert min(waits) >= 20.0 and max(waits) <= 20.5
    assert max(waits) - min(waits) > 0.4


def test_stable_session_begins_anew() -> None:
    """A session that lasted resets the count; one that broke at once does not."""
    after_short: list[float] = []
    after_long: list[float] = []
    for waits, lasted in ((after_short, 1.0), (after_long, 60.0)):
        for _ in range(200):
            backoff = Backoff()
            for _ in range(8):
                backoff.next_wait()
            backoff.session_lasted(lasted)
            waits.append(backoff.next_wait())
    assert max(after_long) <= 0.5
    assert max(after_short) > 10
