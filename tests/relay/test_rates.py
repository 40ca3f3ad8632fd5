"""Token buckets by key, without a clock."""

from __future__ import annotations

import tracemalloc

import pytest

from kdispatch_relay.rates import Rates, Recent, whole_seconds
from tests.net.harness import MIB, sizes

LATE = 1_000_000.5  # a clock's time at which sums of floats are inexact


@pytest.mark.parametrize("now", [0.0, 12_345.678, LATE])
def test_burst_and_refill(now: float) -> None:
    """A bucket has a burst at once, then one after each step, and all again after the whole span."""
    rates = Rates[str](1 / 6, 9)
    assert [rates.take("a", now) for _ in range(9)] == [0.0] * 9
    assert whole_seconds(rates.take("a", now)) == 6
    assert whole_seconds(rates.take("a", now + 2.5)) == 4
    assert rates.take("a", now + 6) == 0.0
    assert rates.take("a", now + 6) > 0
    assert [rates.take("a", now + 100) for _ in range(9)] == [0.0] * 9
    assert rates.take("a", now + 100) > 0


def test_what_is_refused_costs_nothing() -> None:
    """Repeated attempts on an empty bucket do not lengthen the wait."""
    rates = Rates[str](1.0, 1)
    assert rates.take("a", 0.0) == 0.0
    for tenth in range(1, 10):
        assert whole_seconds(rates.take("a", tenth / 10)) == 1
    assert rates.take("a", 1.0) == 0.0


def test_keys_do_not_touch_each_other() -> None:
    """Each key has its own bucket."""
    rates = Rates[str](1.0, 2)
    assert [rates.take(key, 0.0) for key in "aaab"] == [0.0, 0.0, 1.0, 0.0]
    assert (rates.wait("a", 0.0), rates.wait("b", 0.0), rates.wait("c", 0.0)) == (1.0, 0.0, 0.0)


def test_give_back() -> None:
    """What was given back can be taken again, and no more; a key without an entry has nothing to get back."""
    rates = Rates[str](1.0, 2)
    rates.give_back("a")
    rates.take("a", 0.0)
    rates.take("a", 0.0)
    rates.give_back("a")
    assert [rates.take("a", 0.0) for _ in range(2)] == [0.0, 1.0]


def test_full_ones_are_dropped() -> None:
    """An entry that has become full is dropped eventually, without a timer; others stay."""
    rates = Rates[int](1.0, 10)
    for key in range(100):
        rates.take(key, 0.0)
    for _ in range(9):
        rates.take(0, 0.5)
    assert len(rates) == 100
    for _ in range(50):
        rates.take(200, 2.0 + _)
    assert len(rates) == 1  # the one that was just taken from


def test_at_the_cap_the_least_used_goes() -> None:
    """A limited key stays limited however many others come, and a new key always gets an entry."""
    rates = Rates[int](0.001, 9, most=64)
    for _ in range(9):
        assert rates.take(-1, 0.0) == 0.0
    for key in range(10_000):
        assert rates.take(key, key / 1000) == 0.0
        assert len(rates) <= 64
    assert rates.take(-1, 10.0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("sources", sizes(70_000, 1_000_000))
def test_a_million_sources(sources: int) -> None:
    """However many sources there are, their table stays under its cap, in entries and in bytes."""
    rates = Rates[str](1 / 6, 9)
    tracemalloc.start()
    try:
        for number in range(sources):
            rates.take(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64", number * 1e-5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"\n{sources:,} sources: {len(rates):,} entries, {peak / MIB:.1f} MiB at the most")
    assert len(rates) == 65_536
    assert peak < 20 * MIB


def test_recent() -> None:
    """The most recently added keys are known, up to the limit."""
    recent = Recent[str](2)
    for key in ("a", "b", "a", "c"):
        recent.add(key)
    assert ("a" in recent, "b" in recent, "c" in recent, len(recent)) == (True, False, True, 2)
    recent.discard("a")
    recent.discard("a")
    assert len(recent) == 1


@pytest.mark.parametrize(("wait", "told"), [(0.0, 1), (0.2, 1), (6.0, 6), (6.0000000004, 6), (6.01, 7)])
def test_whole_seconds(wait: float, told: int) -> None:
    """Retry-After is never too short, and never 0."""
    assert whole_seconds(wait) == told
