"""A short cache of look-ups.

A query through SQLAlchemy and aiosqlite, with its hops between threads, costs more than all the rest of a request: with
it, a look-up of live hosts took the relay 0.68 ms of processor time, without it 0.19. Cached values expire after a
second. A handle's values are also dropped at every change there that this process makes or learns of, so a revoked
right is not granted for longer than the feed of changes takes anyway. Misses are not cached: the row may be created at
any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from kdispatch_relay.store.batches import Batches

__all__ = ["Kept"]

_SECONDS: Final = 1.0
_MOST: Final = 10_000  # values; above this all are dropped, as they would be within a second

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Kept(Generic[_Key, _Value]):
    """Caches the look-ups of ``batches``, each for a second or until :meth:`forget` of its handle.

    ``handle_of`` returns the handle that a key and its value belong to.
    """

    def __init__(
        self,
        batches: Batches[_Key, _Value],
        handle_of: Callable[[_Key, _Value], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batches = batches
        self._handle_of = handle_of
        self._clock = clock
        self._values: dict[_Key, tuple[_Value, float]] = {}
        self._of: dict[str, dict[_Key, None]] = {}  # the same keys, by handle
        self._looking = 0  # look-ups under way
        self._changes = 0
        self._changed: dict[str, int] = {}  # by handle, the number of its last change while a look-up was under way
        self._forgotten = 0  # changes up to this number are no longer in that table

    async def get(self, key: _Key) -> _Value | None:
        """The value of ``key``; raises what the look-up raised."""
        value = self.kept(key)
        return await self.look(key) if value is None else value

    def kept(self, key: _Key) -> _Value | None:
        """The value of ``key``, if it is cached."""
        kept = self._values.get(key)
        return kept[0] if kept is not None and self._clock() < kept[1] else None

    async def look(self, key: _Key) -> _Value | None:
        """The value of ``key``, looked up now; raises what the look-up raised."""
        now = self._clock()
        before = self._changes
        self._looking += 1
        try:
            value = await self._batches.get(key)
            if value is not None:
                self._keep(key, value, before, now + _SECONDS)
        finally:
            self._looking -= 1
            if not self._looking:
                self._changed.clear()
        return value

    def forget(self, handle: str) -> None:
        """Something of this handle has changed: drop its values."""
        self._changes += 1
        for key in self._of.pop(handle, ()):
            del self._values[key]
        if self._looking:
            if len(self._changed) >= _MOST:
                self._changed.clear()
                self._forgotten = self._changes
            self._changed[handle] = self._changes

    def _keep(self, key: _Key, value: _Value, before: int, until: float) -> None:
        handle = self._handle_of(key, value)
        # A look-up that was under way during a change may have returned the state before it.
        if before < self._forgotten or self._changed.get(handle, 0) > before:
            return
        if len(self._values) >= _MOST:
            self._values.clear()
            self._of.clear()
        self._values[key] = (value, until)
        self._of.setdefault(handle, {})[key] = None
