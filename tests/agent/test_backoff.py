"""When an agent tries again: within bounds, with jitter, and later only after consecutive failures."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kdispatch.backoff import Backoff


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    random.seed(11)


def _most(spread: float, tries: int, samples: int = 400) -> float:
    """The longest wait of many agents after this many failures."""
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
    """After the end of a session, a fleet comes back evenly over the relay's spread."""
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
    """Each failure doubles the largest wait, up to fifteen seconds."""
    assert 0.9 * most < _most(0.5, tries, 50 if tries > 100 else 400) <= most


def test_wide_spread_is_bounded() -> None:
    """However large a spread the relay states, no agent waits longer than the bound."""
    assert _most(500.0, 0) <= 15.0
    assert _most(500.0, 4) <= 15.0


def test_what_was_asked_for_comes_on_top() -> None:
    """A wait that the relay requested is never shortened, and is spread as well."""
    waits = [Backoff().next_wait(20.0) for _ in range(200)]
    assert min(waits) >= 20.0 and max(waits) <= 20.5
    assert max(waits) - min(waits) > 0.4


def _waits(after: Callable[[Backoff], None], tries: int = 8, **now: float) -> list[float]:
    """The waits of 400 agents that failed this often before ``after`` happened."""
    waits = []
    for _ in range(400):
        backoff = Backoff()
        for _ in range(tries):
            backoff.next_wait()
        after(backoff)
        waits.append(backoff.next_wait(**now))
    return waits


@pytest.mark.parametrize(("lasted", "carried"), [(60.0, 0), (1.0, 1)])
def test_a_session_of_use_begins_anew(lasted: float, carried: int) -> None:
    """A session that lasted, or that carried a byte of a program, resets the count."""
    assert max(_waits(lambda backoff: backoff.session_ended(lasted, carried))) <= 0.5


def test_a_session_that_broke_at_once() -> None:
    """A short session without data leaves the count as it was, so that no relay makes an agent spin."""
    assert max(_waits(lambda backoff: backoff.session_ended(1.0, 0))) > 10


def test_a_link_that_cuts_what_has_carried_much() -> None:
    """After a short session that moved many bytes, one try follows at once; then the spread counts again."""
    backoff = Backoff()
    backoff.spread = 2.0
    backoff.session_ended(0.5, 1 << 20)
    assert backoff.next_wait() <= 0.1
    later = list[float]()
    for _ in range(100):
        backoff.session_ended(0.5, 1 << 20)
        backoff.next_wait()
        later.append(backoff.next_wait())
    assert max(later) > 1.5
    # A relay that ends takes all of its agents' sessions with it, and most of those are old.
    assert max(_waits(lambda one: one.session_ended(60.0, 1 << 20))) > 0.4


def test_a_service_that_is_away_is_tried_for_often() -> None:
    """Up to 100 s after the loss no wait is longer than 4 s, and half of each is fixed; later waits are as usual."""
    soon = _waits(lambda _: None, away=30.0)
    assert min(soon) >= 2.0 and 3.8 < max(soon) <= 4.0
    assert max(_waits(lambda _: None, away=101.0)) > 13


def test_a_large_fleet_takes_its_time() -> None:
    """At a relay with many agents, they hurry only as far as it can bear."""

    def many(backoff: Backoff) -> None:
        backoff.spread = 6.0

    assert 11.0 < max(_waits(many, away=30.0)) <= 12.0


@pytest.mark.parametrize("left", [100.0, 19.0, 5.0, 2.0])
def test_streams_that_can_wait_only_so_long(left: float) -> None:
    """No wait takes more than half of the time that streams have left, or than the spread."""
    waits = _waits(lambda _: None, away=110.0, left=left)
    assert max(waits) <= min(15.0, max(0.5, left / 2))


def test_what_a_relay_asks_for_is_obeyed_within_the_grace() -> None:
    """A wait that the relay requested is kept, unless streams would end in it: then it is half of their time."""
    kept = _waits(lambda _: None, at_least=30.0, away=10.0, left=100.0)
    assert min(kept) >= 30.0 and max(kept) <= 34.0
    cut = _waits(lambda _: None, at_least=200.0, away=10.0, left=100.0)
    assert min(cut) >= 50.0 and max(cut) <= 54.0
    left, tries = 120.0, 0
    backoff = Backoff()
    while (left := left - backoff.next_wait(300.0, away=120.0 - left, left=left)) > 0:
        tries += 1
    assert 1 <= tries <= 8
