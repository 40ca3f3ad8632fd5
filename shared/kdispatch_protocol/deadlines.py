"""The one deadline that a stream's state has: to be opened, to be confirmed, to end behind its program's close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdispatch_protocol.states import Leg, State
from kdispatch_protocol.streams import Stream

if TYPE_CHECKING:
    from kdispatch_protocol.table import StreamTable

__all__ = ["Deadlines"]


class Deadlines:
    """Those of a process's streams. A stream whose time is over fails at both ends."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table

    def open(self, stream: Stream, when: float) -> None:
        """A client's stream is to be opened by ``when``; the relay may finish what it is at."""
        stream.set_timer(self._table.timers.add(when, lambda now: self._open_expired(stream, now)))

    def confirm(self, stream: Stream, now: float) -> None:
        """A host's stream is to be confirmed by its client."""
        when = now + self._table.limits.confirm
        stream.set_timer(self._table.timers.add(when, lambda later: self._confirm_expired(stream, later)))

    def linger(self, stream: Stream, now: float) -> None:
        """A stream whose program has closed is to be ended by its peer."""
        when = now + self._table.limits.linger
        stream.set_timer(self._table.timers.add(when, lambda later: self._linger_expired(stream, later)))

    def _open_expired(self, stream: Stream, now: float) -> None:
        fail = self._table.fail
        if stream.opened or stream.ended:
            return
        if stream.leg is Leg.ASKED and now < stream.asked_until:  # the relay is still at it
            self.open(stream, stream.asked_until)
        elif stream.leg is Leg.ASKED:
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
        if stream.grace is not None:  # detached: the client has its time to attach
            self.confirm(stream, now)
        else:
            self._table.fail(stream, "cancelled", "The client never confirmed the stream.")

    def _linger_expired(self, stream: Stream, now: float) -> None:
        if stream.grace is not None:  # what was written is still to be sent; the grace bounds that
            self.linger(stream, now)
        else:
            self._table.fail(stream, "cancelled", "closed")
