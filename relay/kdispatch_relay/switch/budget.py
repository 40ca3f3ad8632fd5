"""Limits: the memory that sessions may occupy in this process, and the rate at which requests may fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

__all__ = ["Bucket", "Chances", "Held", "Joined", "ProcessBudget"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class ProcessBudget:
    """The bytes that all sessions together make this process keep. ``total`` is the limit."""

    __slots__ = ("held", "marks", "queued", "total")

    def __init__(self, total: int) -> None:
        self.total: Final = total
        self.queued = 0  # data that waits to be sent
        self.held = 0  # all else: streams, halves, offers, answers, incomplete messages, what a socket has not taken
        self.marks = 0  # DATA frames marked so far

    @property
    def tight(self) -> bool:
        """Above half of the total: every DATA is marked, and new sessions get less credit."""
        return (self.queued + self.held) * 2 > self.total

    @property
    def spent(self) -> bool:
        """Above the total: the sessions that hold most are cut, and OPEN is answered with ``busy``."""
        return self.queued + self.held > self.total


class Held(dict[_Key, _Value]):
    """A table of one session, counted in the process's budget: ``hold`` gets the change in bytes of each entry."""

    __slots__ = ("_hold", "_weigh")

    def __init__(self, hold: Callable[[int], None], weigh: Callable[[_Value], int]) -> None:
        super().__init__()
        self._hold = hold
        self._weigh = weigh

    def __setitem__(self, key: _Key, value: _Value) -> None:
        before = self._weigh(self[key]) if key in self else 0
        super().__setitem__(key, value)
        self._hold(self._weigh(value) - before)

    def __delitem__(self, key: _Key) -> None:
        size = self._weigh(self[key])
        super().__delitem__(key)
        self._hold(-size)

    def pop(self, key: _Key, *default: Any) -> Any:
        """Like ``dict.pop``."""
        if key in self:
            self._hold(-self._weigh(self[key]))
        return super().pop(key, *default)

    def clear(self) -> None:
        """Like ``dict.clear``."""
        self._hold(-sum(map(self._weigh, self.values())))
        super().clear()

    def _changed_otherwise(self, *_: object, **__: object) -> Any:
        raise TypeError("what a session holds is counted entry by entry")

    popitem = update = setdefault = __ior__ = _changed_otherwise  # no code calls them


class Bucket:
    """A token bucket: ``rate`` tokens a second, ``burst`` at once. Times are seconds of one clock."""

    __slots__ = ("_burst", "_level", "_rate", "_seen")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._seen = now

    def peek(self, now: float) -> bool:
        """Whether there is a token."""
        self._level = min(self._burst, self._level + (now - self._seen) * self._rate)
        self._seen = now
        return self._level >= 1

    def take(self, now: float) -> bool:
        """Take a token; returns whether there was one."""
        there = self.peek(now)
        self._level -= there
        return there


class Chances(Protocol):
    """A bucket, or an object that behaves like one."""

    def peek(self, now: float) -> bool:
        """Whether there is a token."""
        ...

    def take(self, now: float) -> bool:
        """Take a token; returns whether there was one."""
        ...


class Joined:
    """Two buckets used as one: the session's own, and one that it shares with other sessions."""

    __slots__ = ("_own", "_shared")

    def __init__(self, own: Chances, shared: Chances) -> None:
        self._own = own
        self._shared = shared

    def peek(self, now: float) -> bool:
        """Whether both have a token."""
        return self._own.peek(now) and self._shared.peek(now)

    def take(self, now: float) -> bool:
        """Take a token from each; returns whether both had one."""
        # No `and`, which would skip the second: each bucket has to count the request.
        own, shared = self._own.take(now), self._shared.take(now)
        return own and shared
