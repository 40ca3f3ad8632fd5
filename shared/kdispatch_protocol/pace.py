"""How large a batch should be: what drains in about 20 ms, so that control frames never wait long behind it."""

from __future__ import annotations

from kdispatch_protocol.limits import Limits

__all__ = ["Pace"]


class Pace:
    """Learns a socket's rate from the times at which it was full."""

    __slots__ = ("_full_since", "_limits", "_waiting", "batch")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._full_since = 0.0
        self._waiting = 0
        self.batch = limits.batch_max  #: bytes to put into the next message

    def filled(self, waiting: int, now: float) -> None:
        """The socket took no more; ``waiting`` bytes are left over."""
        self._full_since = now
        self._waiting = waiting

    def drained(self, now: float) -> None:
        """All of it is gone: the next batch is what drains in the time a batch may take."""
        limits = self._limits
        took = now - self._full_since
        if took <= limits.batch_time:  # soon enough, however little it was: a busy reader is no slow link
            self.batch = min(limits.batch_max, self.batch * 2)
            return
        wanted = int(self._waiting / took * limits.batch_time)
        # One measurement is noisy (the reader may just have been busy): go half the way.
        self.batch = min(limits.batch_max, max(limits.batch_min, (self.batch + wanted) // 2))
