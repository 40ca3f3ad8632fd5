"""How large a batch should be: what drains in about 20 ms, so that control frames never wait long behind it."""

from __future__ import annotations

from typing import Final

from kdispatch_protocol.limits import Limits

__all__ = ["Pace"]

#: Seconds that a measurement takes at least: kernels take bytes in jumps of 64 KiB and more.
_LONG: Final = 0.050
#: Seconds of a socket that was free, after which it is not certain any more that there was something to send.
_REST: Final = 0.005


class Pace:
    """Learns a socket's rate while it is full again and again: from the bytes that it took between two such moments."""

    __slots__ = ("_began", "_free_since", "_limits", "_taken", "batch")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._began = 0.0  # the measurement's first moment
        self._taken = 0  # what the socket had taken by then
        self._free_since = float("-inf")
        self.batch = limits.batch_max  #: bytes to put into the next message

    def filled(self, taken: int, now: float) -> None:
        """The socket is full, and took ``taken`` bytes since it was made."""
        if now - self._free_since > _REST:
            self._began, self._taken = now, taken
        elif now - self._began >= _LONG:
            rate = (taken - self._taken) / (now - self._began)
            self._began, self._taken = now, taken
            limits = self._limits
            # One measurement is noisy (the reader may just have been busy): go half the way.
            self.batch = min(limits.batch_max, max(limits.batch_min, (self.batch + int(rate * limits.batch_time)) // 2))

    def drained(self, now: float) -> None:
        """It has room again."""
        self._free_since = now

    def never_full(self) -> None:
        """The socket took several batches, and would take more."""
        self.batch = min(self._limits.batch_max, 2 * self.batch)
