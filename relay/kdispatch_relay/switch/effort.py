"""What a session may make the relay do besides carrying data, by buckets of its own and of its source. Sans-I/O.

Data, and what moves a stream that is there, costs nothing: credit bounds it. All else costs, of one of two kinds:

* *idle* frames change nothing: PINGs, frames for numbers that are of the past, frames that repeat what was known, and
  WebSocket frames without a message. Each takes a microsecond or two. A session with too many is cut.
* *asking* is what makes the relay look something up: OPEN, OFFER, ATTACH. It takes up to 100 us. Beyond a source's rate
  its sessions are read no faster than that rate, so that a storm of honest agents is slowed, and ends. A session that
  goes on all the same for longer than any storm lasts is cut.

Beyond a source's idle rate those of its sessions are cut that have a part in it, and others are read slower.
"""

from __future__ import annotations

from typing import Final, Protocol

from kdispatch_protocol.limits import Limits

__all__ = ["ASKS", "IDLE", "Effort", "Source"]

IDLE: Final = "idle_frames"
ASKS: Final = "asking"

# A session has a part in what its source has too much of when it has used this part of its own bucket.
_PART: Final = 1 / 8
# What was refused unseen counts so many times against a session whose source asks too much.
_REFUSED: Final = 4
# A look-up that found nothing costs the relay about a millisecond, most of it in the database's thread.
_LOOK_UP: Final = 8.0
# A session is read again after so many seconds at the latest: its streams' data waits as well.
_LONGEST_REST: Final = 1.0
# When the stream of a leg ends, so many frames for its number may be under way, from an agent that has done nothing
# wrong: an ACK, a FIN, a RESET and a DATA, each before it heard of the end.
_BEHIND_AN_END: Final = 4


class Source(Protocol):
    """The buckets that all sessions of a source have in common."""

    def spend(self, kind: str, count: float, now: float) -> float:
        """Take so many, be they there or not; returns the seconds until the bucket is not overdrawn any more."""
        ...

    def exceeded(self, kind: str, count: float) -> None:
        """So many were beyond what the session or the source may: for the operator's figures."""
        ...

    def give_back(self, kind: str, count: float) -> None:
        """So many of those that were taken did not count."""
        ...


class Effort:
    """One session's. ``idle``, ``asks`` and ``refused`` count what was not settled yet."""

    __slots__ = ("_asks", "_idle", "_limits", "_source", "asks", "idle", "refused", "rest", "why")

    def __init__(self, limits: Limits, source: Source | None) -> None:
        self._limits = limits
        self._source = source
        self._idle = 0.0  # when the session's own bucket is full again
        self._asks = 0.0  # likewise
        self.idle = 0  #: frames that changed nothing
        self.asks = 0.0  #: OPENs, and what costs as much
        self.refused = 0.0  #: of these, what was refused unseen
        self.rest = 0.0  #: seconds for which the session is to be read no more; who heeds it sets it back
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
        """The store was asked for nothing. It remembers what is there, and has to look for what is not."""
        self.asks += _LOOK_UP
        self.refused += _LOOK_UP

    def leg_ended(self) -> None:
        """A stream's number at this session is of the past: what is on its way there is no fault of the agent's."""
        self._idle -= _BEHIND_AN_END / self._limits.idle_rate
        if self._source is not None:
            self._source.give_back(IDLE, _BEHIND_AN_END)

    def _settle_idle(self, count: int, now: float) -> None:
        limits = self._limits
        self._idle = max(self._idle, now) + count / limits.idle_rate
        used = (self._idle - now) * limits.idle_rate / limits.idle_burst
        wait = 0.0 if self._source is None else self._source.spend(IDLE, count, now)
        if used > 1 or (wait and used > _PART):
            self.why = "Too many frames of this session, or of its address, were for nothing."
        self._beyond(IDLE, count, wait)

    def limited(self, kind: str) -> None:
        """Something was refused by a limit that is counted elsewhere; an empty kind is nobody's figure."""
        if kind and self._source is not None:
            self._source.exceeded(kind, 1.0)

    def _settle_asks(self, count: float, refused: float, now: float) -> None:
        wait = 0.0 if self._source is None else self._source.spend(ASKS, count, now)
        if not wait:
            return
        limits = self._limits
        self._asks = max(self._asks, now) + (count + _REFUSED * refused) / limits.storm_rate
        if (self._asks - now) * limits.storm_rate > limits.storm_burst:
            self.why = "This session asked too much for too long."
        self._beyond(ASKS, count, wait)

    def _beyond(self, kind: str, count: float, wait: float) -> None:
        if self._source is not None and (wait or self.why):
            self._source.exceeded(kind, count)
        self.rest = max(self.rest, min(wait, _LONGEST_REST))
