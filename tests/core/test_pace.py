from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.limits import KIB, MIB, Limits
from kdispatch_protocol.session.pace import Pace

LIMITS = Limits()


class Socket:
    """A socket that is written to while it has room; it frees room in jumps, as kernels do."""

    def __init__(self, rate: float, jump: int = 64 * KIB) -> None:
        self.pace = Pace(LIMITS)
        self.rate = rate
        self.now = 100.0
        self.taken = 0
        self._jump = jump

    def drive(self, seconds: float) -> int:
        """Keep it full for this long; returns the batch then."""
        end = self.now + seconds
        while self.now < end:
            self.pace.filled(self.taken, self.now)
            self.now += self._jump / self.rate
            self.pace.drained(self.now)
            self.taken += self._jump
        return self.pace.batch


def test_unknown_rate() -> None:
    """A socket that was never full gets the largest batches."""
    assert Pace(LIMITS).batch == LIMITS.batch_max


def test_a_slow_socket() -> None:
    """At 1 MB/s a batch becomes what drains in 20 ms, although the kernel takes 64 KiB at a time."""
    assert abs(Socket(1e6).drive(3.0) - 20_000) < 200
    assert abs(Socket(1e6, jump=3 * KIB).drive(3.0) - 20_000) < 2000


def test_the_slowest_socket() -> None:
    """On the slowest links, batches do not get smaller than the minimum."""
    assert Socket(10_000).drive(100.0) == LIMITS.batch_min


def test_a_fast_socket() -> None:
    """On the fastest links, batches do not get larger than the maximum."""
    assert Socket(100 * MIB).drive(1.0) == LIMITS.batch_max


def test_a_short_pause_of_a_fast_socket() -> None:
    """A reader that is busy for a quarter of a second does not make a fast link count as slow."""
    socket = Socket(300 * MIB)
    socket.drive(0.5)
    socket.pace.filled(socket.taken, socket.now)
    socket.now += 0.25
    socket.pace.drained(socket.now)
    assert socket.drive(0.2) == LIMITS.batch_max


def test_rests_are_not_counted() -> None:
    """A socket without data for a while does not count as slow."""
    socket = Socket(100 * MIB)
    for _ in range(10):
        socket.drive(0.001)
        socket.now += 1.0
    assert socket.pace.batch == LIMITS.batch_max


def test_a_link_that_became_fast() -> None:
    """Batches grow again if the link is full at a higher rate, and if it is no longer full."""
    socket = Socket(0.5e6)
    assert socket.drive(5.0) == LIMITS.batch_min
    for _ in range(3):
        socket.pace.never_full()
    assert socket.pace.batch == LIMITS.batch_max
    assert socket.drive(5.0) == LIMITS.batch_min
    socket.rate = 100 * MIB
    assert socket.drive(0.5) == LIMITS.batch_max


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.floats(0, 100), st.floats(0, 1), st.booleans())))
@settings(max_examples=100)
def test_always_within_bounds(times: list[tuple[int, float, float, bool]]) -> None:
    """Whatever is measured, a batch stays between the minimum and the maximum."""
    pace = Pace(LIMITS)
    taken, now = 0, 1000.0
    for size, full, free, never in times:
        taken += size
        pace.filled(taken, now)
        now += full
        pace.drained(now)
        now += free
        if never:
            pace.never_full()
        assert LIMITS.batch_min <= pace.batch <= LIMITS.batch_max
