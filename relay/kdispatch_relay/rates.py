"""Token buckets by key, in a table that stays small whoever fills it. Sans-I/O: the time is an argument.

Of a bucket only one number is kept: the time at which it will be full again. A key without an entry has a full one, so
entries whose time has come are dropped; each take looks at two of them, which needs no timer and no search. At the
table's cap a new key takes the place of the one, among a few, whose bucket lacks least: that one forgets less than
any other would, and nobody is refused for others being many.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from itertools import islice
from typing import Final, Generic, TypeVar

__all__ = ["MOST_KEYS", "Rates", "Recent", "whole_seconds"]

MOST_KEYS: Final = 65_536  # entries of some 250 bytes: such a table has 17 MB at the most

_SWEPT: Final = 2  # entries looked at by each take: more than it adds
_CANDIDATES: Final = 8  # of which one goes at the cap
_OVERDRAWN: Final = 1.0  # seconds' worth that may be taken beyond what is there
_ROUNDING: Final = 1e-6  # seconds; sums of times are not exact

_Key = TypeVar("_Key", bound=Hashable)


def whole_seconds(wait: float) -> int:
    """A wait as ``Retry-After`` says it: what is told is never too short, and never 0."""
    return max(1, math.ceil(wait - _ROUNDING))


class Rates(Generic[_Key]):
    """Buckets of one kind: ``rate`` a second, ``burst`` at once. Times are seconds of one clock."""

    __slots__ = ("_full", "_most", "_span", "_step")

    def __init__(self, rate: float, burst: float, most: int = MOST_KEYS) -> None:
        assert rate > 0
        assert burst >= 1
        self._step = 1 / rate  # seconds that one takes to come back
        self._span = burst / rate  # seconds from empty to full
        self._most = most
        # When each is full again. Not a dict: to the first entry of one from whose front many were taken is a long way.
        self._full: OrderedDict[_Key, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full)

    def wait(self, key: _Key, now: float) -> float:
        """Seconds until there is one for ``key``; 0.0 where there is one now."""
        full = self._full.get(key)
        if full is None:
            return 0.0
        wait = full + self._step - self._span - now
        return wait if wait > _ROUNDING else 0.0

    def take(self, key: _Key, now: float) -> float:
        """Take one, where there is one; returns the seconds until there will be, 0.0 where it was taken."""
        wait = self.wait(key, now)
        if wait == 0.0:
            self._sweep(now)
            full = self._full.get(key)
            if full is None and len(self._full) >= self._most:
                self._make_room()
            self._full[key] = max(now, full or now) + self._step
        return wait

    def spend(self, key: _Key, count: float, now: float) -> float:
        """Take so many, be they there or not; returns the seconds until the bucket is not overdrawn any more.

        What is overdrawn is bounded: by a second's worth.
        """
        self._sweep(now)
        full = self._full.get(key)
        if full is None and len(self._full) >= self._most:
            self._make_room()
        self._full[key] = full = min(max(now, full or now) + count * self._step, now + self._span + _OVERDRAWN)
        return max(0.0, full - self._span - now)

    def give_back(self, key: _Key, count: float = 1.0) -> None:
        """What was taken did not count."""
        if key in self._full:
            self._full[key] -= count * self._step

    def _make_room(self) -> None:
        del self._full[min(islice(self._full, _CANDIDATES), key=self._full.__getitem__)]

    def _sweep(self, now: float) -> None:
        for key in list(islice(self._full, _SWEPT)):
            if self._full[key] <= now:
                del self._full[key]
            else:
                self._full.move_to_end(key)


class Recent(Generic[_Key]):
    """The last so many keys that were added."""

    __slots__ = ("_keys", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: OrderedDict[_Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: _Key) -> bool:
        return key in self._keys

    def add(self, key: _Key) -> None:
        """It is the newest one now."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)

    def discard(self, key: _Key) -> None:
        """Forget it, if it is there."""
        self._keys.pop(key, None)
