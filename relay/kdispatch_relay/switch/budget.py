"""What may wait in this process for its sessions, and how often things may fail."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["Bucket", "Chances", "Joined", "ProcessBudget"]


class ProcessBudget:
    """The bytes that wait in all queues together; ``total`` is the most there may be."""

    __slots__ = ("marks", "queued", "total")

    def __init__(self, total: int) -> None:
        self.total: Final = total
        self.queued = 0
        self.marks = 0  # DATA frames that were marked so far

    @property
    def tight(self) -> bool:
        """Above half: every DATA is marked, and new sessions get less credit."""
        return self.queued * 2 > self.total

    @property
    def spent(self) -> bool:
        """Above all of it: the longest queues are cut, and OPEN answers ``busy``."""
        return self.queued > self.total


class Bucket:
    """A token bucket: ``rate`` a second, ``burst`` at once. Times are seconds of one clock."""

    __slots__ = ("_burst", "_level", "_rate", "_seen")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._seen = now

    def peek(self, now: float) -> bool:
        """Whether there is one."""
        self._level = min(self._burst, self._level + (now - self._seen) * self._rate)
        self._seen = now
        return self._level >= 1

    def take(self, now: float) -> bool:
        """Take one; returns whether there was one."""
        there = self.peek(now)
        self._level -= there
        return there


class Chances(Protocol):
    """A bucket, or what is one like it."""

    def peek(self, now: float) -> bool:
        """Whether there is one."""
        ...

    def take(self, now: float) -> bool:
        """Take one; returns whether there was one."""
        ...


class Joined:
    """Two buckets from which is taken as if they were one: a session's own, and one that it has with others."""

    __slots__ = ("_own", "_shared")

    def __init__(self, own: Chances, shared: Chances) -> None:
        self._own = own
        self._shared = shared

    def peek(self, now: float) -> bool:
        """Whether there is one in both."""
        return self._own.peek(now) and self._shared.peek(now)

    def take(self, now: float) -> bool:
        """Take one from each; returns whether there was one in both."""
        # Not by `and`: what the one lacks counts in the other nevertheless.
        own, shared = self._own.take(now), self._shared.take(now)
        return own and shared
