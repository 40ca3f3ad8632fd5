"""One timer of an event loop that only moves to earlier times."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

__all__ = ["Alarm"]

# uvloop counts whole milliseconds, so it may call slightly before a computed deadline. A caller that then asks again
# for almost no time would be called in every turn of the loop until the millisecond is over.
_GRAIN: Final = 0.001


class Alarm:
    """Calls ``ring`` once, at the earliest requested time. ``ring`` may set it again.

    It stores the time itself, because uvloop's handle does not know a time that has passed.
    """

    __slots__ = ("_handle", "_loop", "_ring", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self.at = math.inf  #: when it rings
        self._handle: asyncio.Handle | None = None

    def set(self, when: float | None) -> None:
        """Ring at ``when`` in the loop's time, not earlier, unless an earlier time is set; ``None`` changes nothing."""
        if when is None or when >= self.at:
            return
        if self._handle is not None:
            self._handle.cancel()
        self.at = when
        self._handle = self._loop.call_at(when + _GRAIN, self._rings)

    def cancel(self) -> None:
        """Cancel the alarm."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self.at = math.inf

    def _rings(self) -> None:
        self._handle = None
        self.at = math.inf
        self._ring()
