"""How a stream's window follows its path: up while it holds the sender back, down while its bytes wait at the relay.

The relay marks bytes whose waits have been long, the sender says where its
limit held it up. Both come with DATA, so no clock is compared and no round trip
measured. Once for each window that arrived the share of marked bytes goes into
a moving average (as in DCTCP, RFC 8257), and the window shrinks by half of that
average, or grows.
"""

from __future__ import annotations

from typing import Final

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames

__all__ = ["Growth"]

#: A new share's weight in the moving average. RFC 8257 has 1/16; streams here last too short for that.
_WEIGHT: Final = 1 / 4
#: A window grows if all but this part of what arrived was taken; and by this part, or the floor, once a mark was seen.
_PART: Final = 8
#: After so many windows without a mark the path counts as empty again: grown 1.125 ** 16 = 6.6 times it must be larger.
_CALM: Final = 16


class Growth:
    """One stream's, from the first flag on: most streams never see one, and carry none of this."""

    __slots__ = ("_average", "_began", "_blocked", "_marked", "_now", "_start", "_wary")

    def __init__(self, received: int, now: float) -> None:
        self._average = 0.0  # of the share of bytes that were marked
        self._wary = 0  # windows until the path counts as empty, after a mark
        self._began = self._now = now
        self._start = received  # where the round began, as an offset
        self._marked = 0  # bytes of the round
        self._blocked = False

    def note(self, flags: int, length: int, now: float) -> None:
        """So many new bytes came with these flags."""
        if flags & frames.MARKED:
            self._marked += length
        if flags & frames.BLOCKED:
            self._blocked = True
        self._now = now

    def window(self, before: int, received: int, unread: int, most: int, limits: Limits) -> int:
        """The window from now on. ``unread`` bytes came and were not taken; ``most`` is as far as it may grow."""
        arrived = received - self._start
        # A window that waits somewhere takes long to arrive: do not wait that long to make it smaller.
        late = self._marked and self._now - self._began >= limits.mark_round
        if not arrived or not (late or arrived >= before):
            return before
        self._average += (self._marked / arrived - self._average) * _WEIGHT
        after = before
        if self._marked:
            self._wary = _CALM
            after = max(int(before * (1 - self._average / 2)), min(before, limits.window_floor))
        elif self._blocked and unread <= arrived // _PART:
            # The floor makes small windows grow faster, so that streams of one path come to the same.
            more = max(before // _PART, limits.window_floor) if self._wary else before
            after = max(before, min(before + more, most))
            self._wary = max(0, self._wary - 1)
        self._began, self._start = self._now, received
        self._marked, self._blocked = 0, False
        return after
