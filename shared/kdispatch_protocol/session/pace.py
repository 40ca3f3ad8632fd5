"""The batch size: what the socket sends in about 20 ms, so that control frames never wait long behind a batch."""

from __future__ import annotations

from typing import Final

from kdispatch_protocol.limits import Limits

__all__ = ["Pace"]

#: Shortest measurement in seconds: kernels take bytes in jumps of 64 KiB and more.
_LONG: Final = 0.050
#: If the socket was free for longer than this, in seconds, perhaps there was nothing to send.
_REST: Final = 0.005


class Pace:
    """Measures a socket's rate while it is full repeatedly: the bytes that it took between two such moments."""

    __slots__ = ("_began", "_free_since", "_limits", "_taken", "batch")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._began = 0.0  # start of the measurement
        self._taken = 0  # bytes that the socket had taken by then
        self._free_since = float("-inf")
        self.batch = limits.batch_max  #: bytes to put into the next message

    def filled(self, taken: int, now: float) -> None:
        """Record that the socket is full, having taken ``taken`` bytes in total."""
        if now - self._free_since > _REST:
            self._began, self._taken = now, taken
        elif now - self._began >= _LONG:
            rate = (taken - self._taken) / (now - self._began)
            self._began, self._taken = now, taken
            limits = self._limits
            # One measurement is noisy (the reader may have been busy), so go half the way.
            self.batch = min(limits.batch_max, max(limits.batch_min, (self.batch + int(rate * limits.batch_time)) // 2))

    def drained(self, now: float) -> None:
        """Record that the socket has room again."""
        self._free_since = now

    def never_full(self) -> None:
        """The socket took several batches and would take more: double the batch."""
        self.batch = min(self._limits.batch_max, 2 * self.batch)
