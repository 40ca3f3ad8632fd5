from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.limits import KIB, MIB, Limits
from kdispatch_protocol.pace import Pace

LIMITS = Limits()


def after(rate: float, rounds: int) -> int:
    """The batch after a socket of this rate, in bytes a second, was full so many times."""
    pace = Pace(LIMITS)
    now = 100.0
    for _ in range(rounds):
        pace.filled(pace.batch, now)
        now += pace.batch / rate
        pace.drained(now)
    return pace.batch


def test_unknown_rate() -> None:
    """A socket that was never full gets the largest batches."""
    assert Pace(LIMITS).batch == LIMITS.batch_max


def test_a_slow_socket() -> None:
    """On 1 MB/s a batch comes to be what drains in 20 ms."""
    assert abs(after(1e6, 12) - 20_000) < 200


def test_the_slowest_socket() -> None:
    """No link is so slow that batches get smaller than the least."""
    assert after(1000, 12) == LIMITS.batch_min


def test_a_fast_socket() -> None:
    """No link is so fast that batches get larger than the most."""
    assert after(100 * MIB, 3) == LIMITS.batch_max


def test_half_the_way() -> None:
    """One slow moment changes the batch half the way only."""
    pace = Pace(LIMITS)
    pace.filled(20 * KIB, 1.0)
    pace.drained(1.020)
    assert abs(pace.batch - (LIMITS.batch_max + 20 * KIB) // 2) < 10


def test_no_time_at_all() -> None:
    """Drained in no measurable time, the socket is as fast as any."""
    pace = Pace(LIMITS)
    pace.filled(100, 1.0)
    pace.drained(2.0)
    assert pace.batch < LIMITS.batch_max
    pace.filled(100, 3.0)
    pace.drained(3.0)
    assert pace.batch == LIMITS.batch_max


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.floats(-1, 100).filter(lambda t: t <= 0 or t > 1e-9))))
@settings(max_examples=100)
def test_always_within_bounds(times: list[tuple[int, float]]) -> None:
    """Whatever is measured, a batch stays between the least and the most."""
    pace = Pace(LIMITS)
    for waiting, took in times:
        pace.filled(waiting, 1000.0)
        pace.drained(1000.0 + took)
        assert LIMITS.batch_min <= pace.batch <= LIMITS.batch_max
