"""Delayed resets: a program's connection ended, and the peer gets all its bytes before the RESET."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdispatch_protocol.endpoint.deadlines import Deadlines
from kdispatch_protocol.endpoint.streams import Farewell, Stream

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.table import StreamTable

__all__ = ["Farewells"]


class Farewells:
    """Streams of this process whose programs have ended while their peers still lack bytes.

    A RESET overtakes DATA, here and at the relay, and a lost session drops both. So this end sends the RESET only after
    the peer has acknowledged everything. That needs no support on the wire, and survives whatever the stream survives.
    """

    def __init__(self, table: StreamTable, deadlines: Deadlines) -> None:
        self._table = table
        self._deadlines = deadlines

    def begin(self, stream: Stream, code: str, text: str, now: float, *, more: bool = False) -> None:
        """Reset ``stream`` once the peer has all that its program wrote; drop what still arrives for it.

        A StreamWasReset event follows, at once if the peer has everything. A peer that takes nothing for
        ``Limits.last_words`` is reset without the rest. ``more`` means that more is to be written: call again after
        that.
        """
        if stream.ended:
            return
        self._table.now = now
        stream.expect(more=more)
        if stream.farewell is None:
            stream.close(Farewell(code, text, stream.inbound.consumed + self._table.limits.dropped))
            if stream.opened:  # an unopened stream keeps the deadline of its open
                self._deadlines.linger(stream, now)
        self.look(stream)

    def look(self, stream: Stream) -> None:
        """Reset the stream if it waits for nothing more. Call this after each acknowledgement."""
        if stream.farewell is not None and stream.said:
            self._table.fail(stream, stream.farewell.code, stream.farewell.text)

    def dropped(self, stream: Stream, count: int, now: float) -> None:
        """Account for ``count`` bytes that arrived after the program's end: credit them, up to ``Limits.dropped``.

        A peer's program may send everything before it reads; without credit it would never get to the last bytes. With
        unlimited credit, a program that sends for ever would keep both agents and the relay busy.
        """
        if stream.farewell is not None and not stream.ended:
            left = stream.farewell.credited_to - stream.inbound.consumed
            self._table.consume(stream, min(count, max(left, 0)), now)
            if 0 < left <= count:
                self._deadlines.linger(stream, now)  # from now on the deadline is shorter
