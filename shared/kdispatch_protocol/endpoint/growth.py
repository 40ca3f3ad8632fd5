"""Window control of a stream: the window grows while it limits the sender, and shrinks while bytes wait at the relay.

The relay marks bytes that waited for long, and the sender flags where its limit
stopped it. Both flags come with DATA, so this needs no synchronized clocks and no
round-trip times. After each window of received bytes the share of marked bytes
enters a moving average (as in DCTCP, RFC 8257). The window then shrinks by half of
that average, or grows.
"""

from __future__ import annotations

from typing import Final

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames

__all__ = ["Growth"]

#: Weight of a new share in the moving average. RFC 8257 has 1/16; streams here are too short for that.
_WEIGHT: Final = 1 / 4
#: A window grows if at most 1/8 of what arrived is unread. After a mark it grows by 1/8 of itself, or by the floor.
_PART: Final = 8
#: After 16 windows without a mark the path counts as uncongested: by then the window is 1.125 ** 16 = 6.6 times as
#: large.
_CALM: Final = 16


class Growth:
    """Window state of one stream. It exists from the first flag on: most streams never see one."""

    __slots__ = ("_average", "_began", "_blocked", "_marked", "_now", "_start", "_wary")

    def __init__(self, received: int, now: float) -> None:
        self._average = 0.0  # of the share of bytes that were marked
        self._wary = 0  # windows left until the path counts as uncongested after a mark
        self._began = self._now = now
        self._start = received  # offset at which the round began
        self._marked = 0  # marked bytes of the round
        self._blocked = False

    def note(self, flags: int, length: int, now: float) -> None:
        """Count ``length`` new bytes that arrived with ``flags``."""
        if flags & frames.MARKED:
            self._marked += length
        if flags & frames.BLOCKED:
            self._blocked = True
        self._now = now

    def window(self, before: int, received: int, unread: int, most: int, limits: Limits) -> int:
        """Return the new window. ``unread`` bytes arrived but were not consumed; ``most`` bounds the growth."""
        arrived = received - self._start
        # A window whose bytes wait somewhere takes long to arrive: shrink it without waiting for the rest.
        late = self._marked and self._now - self._began >= limits.mark_round
        if not arrived or not (late or arrived >= before):
            return before
        self._average += (self._marked / arrived - self._average) * _WEIGHT
        after = before
        if self._marked:
            self._wary = _CALM
            after = max(int(before * (1 - self._average / 2)), min(before, limits.window_floor))
        elif self._blocked and unread <= arrived // _PART:
            # The floor lets small windows grow faster, so that streams on one path converge.
            more = max(before // _PART, limits.window_floor) if self._wary else before
            after = max(before, min(before + more, most))
            self._wary = max(0, self._wary - 1)
        self._began, self._start = self._now, received
        self._marked, self._blocked = 0, False
        return after
