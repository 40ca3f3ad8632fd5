"""Limits what a session makes the relay do besides carrying data, with buckets of the session and its source. Sans-I/O.

Data costs nothing here, nor does a frame that moves a running stream: credit bounds those. All other frames cost, in
one of two kinds:

* *idle* frames change nothing: PINGs, frames for numbers that have ended, frames that repeat what was known, and
  WebSocket frames without a message. Each takes a microsecond or two. A session with too many is cut.
* *asking* frames make the relay look something up: OPEN, OFFER, ATTACH. Each takes up to 100 us. When a source exceeds
  its rate, the relay reads its sessions no faster than that rate, so that a storm of honest agents is slowed and ends.
  A session that continues for longer than any storm lasts is cut.

When a source exceeds its idle rate, the relay cuts those of its sessions that have a part in it, and reads the others
more slowly.
"""

from __future__ import annotations

from typing import Final, Protocol

from kdispatch_protocol.limits import Limits

__all__ = ["ASKS", "IDLE", "Effort", "EffortSource"]

IDLE: Final = "idle_frames"
ASKS: Final = "asking"

# A session has a part in its source's excess once it has used this part of its own bucket.
_PART: Final = 1 / 8
# A request that was refused unread counts this many times against a session whose source asks too much.
_REFUSED: Final = 4
# A look-up that finds nothing costs the relay about a millisecond, most of it in the database's thread.
_LOOK_UP: Final = 8.0
# The longest pause in reading a session, in seconds: the data of its streams waits as well.
_LONGEST_REST: Final = 1.0
# When a leg's stream ends, this many frames for its number may be under way from an agent that did nothing wrong: an
# ACK, a FIN, a RESET and a DATA, each sent before the agent heard of the end.
_BEHIND_AN_END: Final = 4
# This many ends are settled at once, at the latest: for each alone an open would cost the relay 2 us more.
_ENDS: Final = 16


class EffortSource(Protocol):
    """The buckets that all sessions of a source share."""

    def spend(self, kind: str, count: float, now: float) -> float:
        """Take ``count`` tokens, even if too few are left; returns the seconds until the bucket is in credit again."""
        ...

    def exceeded(self, kind: str, count: float) -> None:
        """Count requests that exceeded the limit of the session or the source, for the operator's figures."""
        ...

    def give_back(self, kind: str, count: float) -> None:
        """Give back ``count`` of the tokens that were taken."""
        ...


class Effort:
    """The effort of one session. ``idle``, ``asks`` and ``refused`` count what was not settled yet."""

    __slots__ = ("_asks", "_ends", "_idle", "_limits", "_source", "asks", "idle", "refused", "rest", "why")

    def __init__(self, limits: Limits, source: EffortSource | None) -> None:
        self._limits = limits
        self._source = source
        self._idle = 0.0  # when the session's own bucket is full again
        self._asks = 0.0  # when its bucket for asking is full again
        self._ends = 0  # ends of streams that were not settled yet
        self.idle = 0  #: frames that changed nothing
        self.asks = 0.0  #: OPENs, and other requests in units of an OPEN
        self.refused = 0.0  #: the part of these that was refused unread
        self.rest = 0.0  #: seconds for which the session is not to be read; the gate clears it
        self.why = ""  #: why the session is cut; empty as long as it is not

    def settle(self, now: float) -> bool:
        """Take from the buckets what was counted; returns whether the session may go on."""
        if self.idle:
            count, self.idle = self.idle, 0
            self._settle_idle(count, now)
        if self.asks:
            count_asked, self.asks = self.asks, 0.0
            count_refused, self.refused = self.refused, 0.0
            self._settle_asks(count_asked, count_refused, now)
        return not self.why

    def look_up_failed(self) -> None:
        """Count a look-up that found nothing. The store caches rows that exist, but has to search for all others."""
        self.asks += _LOOK_UP
        self.refused += _LOOK_UP

    def leg_ended(self) -> None:
        """A stream's number at this session has ended: frames that are already under way to it do not count."""
        self._ends += 1
        if self._ends >= _ENDS:
            self._settle_ends()

    def _settle_ends(self) -> None:
        behind, self._ends = self._ends * _BEHIND_AN_END, 0
        self._idle -= behind / self._limits.idle_rate
        if self._source is not None:
            self._source.give_back(IDLE, behind)

    def _settle_idle(self, count: int, now: float) -> None:
        limits = self._limits
        if self._ends:
            self._settle_ends()
        self._idle = max(self._idle, now) + count / limits.idle_rate
        used = (self._idle - now) * limits.idle_rate / limits.idle_burst
        wait = 0.0 if self._source is None else self._source.spend(IDLE, count, now)
        if used > 1 or (wait and used > _PART):
            self.why = "Too many frames without effect came from this session or its address."
        self._beyond(IDLE, count, wait)

    def limited(self, kind: str) -> None:
        """Count a refusal by a limit that is kept elsewhere. An empty kind is not counted."""
        if kind and self._source is not None:
            self._source.exceeded(kind, 1.0)

    def _settle_asks(self, count: float, refused: float, now: float) -> None:
        wait = 0.0 if self._source is None else self._source.spend(ASKS, count, now)
        if not wait:
            return
        limits = self._limits
        self._asks = max(self._asks, now) + (count + _REFUSED * refused) / limits.storm_rate
        if (self._asks - now) * limits.storm_rate > limits.storm_burst:
            self.why = "This session sent too many requests for too long."
        self._beyond(ASKS, count, wait)

    def _beyond(self, kind: str, count: float, wait: float) -> None:
        if self._source is not None and (wait or self.why):
            self._source.exceeded(kind, count)
        self.rest = max(self.rest, min(wait, _LONGEST_REST))
