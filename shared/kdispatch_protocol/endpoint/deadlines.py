"""Deadlines of streams: one per state (to be opened, to be confirmed, to end after a close), and those of ACKs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdispatch_protocol.endpoint.states import LegState, State
from kdispatch_protocol.endpoint.streams import Stream

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.table import StreamTable

__all__ = ["Deadlines"]


class Deadlines:
    """Deadlines of a process's streams. A stream that misses its deadline fails at both ends."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table
        self._hurrying = False  # a deadline for delayed ACKs is set

    def open(self, stream: Stream, when: float) -> None:
        """Client: the stream must be opened by ``when``. A pending OPEN at the relay may extend this."""
        stream.set_timer(self._table.timers.add(when, lambda now: self._open_expired(stream, now)))

    def confirm(self, stream: Stream, now: float) -> None:
        """Host: the client must confirm the stream within ``Limits.confirm``."""
        when = now + self._table.limits.confirm
        stream.set_timer(self._table.timers.add(when, lambda later: self._confirm_expired(stream, later)))

    def linger(self, stream: Stream, now: float) -> None:
        """Bound how long a closed stream waits for the peer's end, or before a reset for the peer to read."""
        limits, base, farewell = self._table.limits, stream.outbound.base, stream.farewell
        if farewell is None:
            wait = limits.linger
        elif stream.inbound.consumed < farewell.credited_to:
            wait = limits.last_words
        else:
            wait = limits.last_chance
        stream.set_timer(self._table.timers.add(now + wait, lambda later: self._linger_expired(stream, base, later)))

    def acknowledge(self, stream: Stream, now: float) -> None:
        """Acknowledge received bytes within ``Limits.ack_delay``."""
        when = now + self._table.limits.ack_delay
        stream.set_ack_timer(self._table.timers.add(when, lambda _: self._ack_due(stream)))

    def company(self) -> None:
        """Bound the time for which ACKs wait for other frames to go with."""
        if not self._hurrying:
            self._hurrying = True
            table = self._table
            table.timers.add(table.now + table.limits.ack_company, self._hurry)

    def _hurry(self, _now: float) -> None:
        self._hurrying = False
        for session in self._table.sessions:
            session.outbox.hurry()

    @staticmethod
    def _ack_due(stream: Stream) -> None:
        stream.set_ack_timer(None)
        if stream.inbound.unacknowledged and not stream.ended:
            stream.session.outbox.acknowledge(stream)

    def _open_expired(self, stream: Stream, now: float) -> None:
        fail = self._table.fail
        if stream.opened or stream.ended:
            return
        if stream.leg is LegState.ASKED and now < stream.asked_until:  # the relay still works on it
            self.open(stream, stream.asked_until)
        elif stream.leg is LegState.ASKED:
            fail(stream, "host_timeout", "There was no answer to the request for a host.")
        elif stream.state is State.TRYING:
            fail(stream, "open_interrupted", "The host that was asked did not come back.")
        elif self._table.session.ready:
            fail(stream, "host_timeout", "Too many requests for a host wait for their answers.")
        else:
            fail(stream, "relay_unreachable", "There was no session with the relay for too long.")

    def _confirm_expired(self, stream: Stream, now: float) -> None:
        if stream.confirmed:
            return
        if stream.grace is not None:  # detached: the client still has time to attach
            self.confirm(stream, now)
        else:
            self._table.fail(stream, "cancelled", "The client never confirmed the stream.")

    def _linger_expired(self, stream: Stream, base: int, now: float) -> None:
        # While the stream is detached the grace bounds the wait. A peer that takes bytes, however slowly, gets all of
        # them.
        if stream.grace is not None or stream.outbound.base > base:
            self.linger(stream, now)
        elif stream.farewell is not None:
            self._table.fail(stream, stream.farewell.code, "Not all that was said before this reset was taken in time.")
        else:
            self._table.fail(stream, "cancelled", "closed")
