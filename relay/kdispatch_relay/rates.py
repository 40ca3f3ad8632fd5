"""Token buckets by key, in a table of bounded size. Sans-I/O: the time is an argument.

Each bucket is stored as one number: the time at which it will be full again. A key without an entry has a full bucket,
so entries whose time has passed are dropped. Each take checks two entries, which needs no timer and no search. When the
table is full, it evicts the key, among eight candidates, whose bucket is closest to full. That forgets less than any
other eviction among them, and no key is refused because there are many others.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from itertools import islice
from typing import Final, Generic, TypeVar

__all__ = ["MOST_KEYS", "Rates", "Recent", "whole_seconds"]

MOST_KEYS: Final = 65_536  # entries of some 250 bytes: at most 17 MB a table

_SWEPT: Final = 2  # entries checked by each take: more than it adds
_CANDIDATES: Final = 8  # one of which is evicted when the table is full
_OVERDRAWN: Final = 1.0  # a bucket can be overdrawn by this many seconds' worth
_ROUNDING: Final = 1e-6  # seconds; sums of times are not exact

_Key = TypeVar("_Key", bound=Hashable)


def whole_seconds(wait: float) -> int:
    """A wait as ``Retry-After`` states it: rounded up, and never 0."""
    return max(1, math.ceil(wait - _ROUNDING))


class Rates(Generic[_Key]):
    """Buckets of one kind: ``rate`` tokens a second, ``burst`` at once. Times are seconds of one clock."""

    __slots__ = ("_full", "_most", "_span", "_step")

    def __init__(self, rate: float, burst: float, most: int = MOST_KEYS) -> None:
        assert rate > 0
        assert burst >= 1
        self._step = 1 / rate  # seconds until one token has come back
        self._span = burst / rate  # seconds from empty to full
        self._most = most
        # When each is full again. Not a dict: after many deletions at its front, a dict takes long to find its first
        # entry.
        self._full: OrderedDict[_Key, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full)

    def wait(self, key: _Key, now: float) -> float:
        """Seconds until there is a token for ``key``; 0.0 if there is one now."""
        full = self._full.get(key)
        if full is None:
            return 0.0
        wait = full + self._step - self._span - now
        return wait if wait > _ROUNDING else 0.0

    def take(self, key: _Key, now: float) -> float:
        """Take a token if there is one; returns the seconds until there will be one, 0.0 if it was taken."""
        wait = self.wait(key, now)
        if wait == 0.0:
            if len(self._full) > 1:
                self._sweep(now)
            full = self._full.get(key)
            if full is None and len(self._full) >= self._most:
                self._make_room()
            self._full[key] = max(now, full or now) + self._step
        return wait

    def spend(self, key: _Key, count: float, now: float) -> float:
        """Take ``count`` tokens, even if too few are left; returns the seconds until the bucket is in credit again.

        A bucket can be overdrawn by a second's worth at most.
        """
        if len(self._full) > 1:
            self._sweep(now)
        full = self._full.get(key)
        if full is None and len(self._full) >= self._most:
            self._make_room()
        self._full[key] = full = min(max(now, full or now) + count * self._step, now + self._span + _OVERDRAWN)
        return max(0.0, full - self._span - now)

    def give_back(self, key: _Key, count: float = 1.0) -> None:
        """Give back ``count`` tokens that were taken."""
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
    """The most recently added keys, up to ``most``."""

    __slots__ = ("_keys", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: OrderedDict[_Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: _Key) -> bool:
        return key in self._keys

    def add(self, key: _Key) -> None:
        """Add a key, as the newest one."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)

    def discard(self, key: _Key) -> None:
        """Forget a key, if it is there."""
        self._keys.pop(key, None)
