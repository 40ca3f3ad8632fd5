"""One timer of an event loop that only ever moves to an earlier time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

__all__ = ["Alarm"]

# uvloop counts whole milliseconds, so it may call when a deadline that is a sum is a hair away. Who then asks again for
# next to no time is called in every turn of the loop until the millisecond is over.
_GRAIN: Final = 0.001


class Alarm:
    """Calls ``ring`` once at the earliest time that was asked for. Setting it in ``ring`` begins anew.

    It keeps the time itself: uvloop's handle of a time that has passed knows none.
    """

    __slots__ = ("_at", "_handle", "_loop", "_ring")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._at = math.inf
        self._handle: asyncio.Handle | None = None

    def set(self, when: float | None) -> None:
        """Ring at ``when`` in the loop's time, never before, or for an earlier one; ``None`` changes nothing."""
        if when is None or when >= self._at:
            return
        if self._handle is not None:
            self._handle.cancel()
        self._at = when
        self._handle = self._loop.call_at(when + _GRAIN, self._rings)

    def cancel(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._at = math.inf

    def _rings(self) -> None:
        self._handle = None
        self._at = math.inf
        self._ring()
