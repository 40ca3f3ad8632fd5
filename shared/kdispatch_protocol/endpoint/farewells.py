"""Resets that come behind the last words: what a program said before its end arrives, and then the reset does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdispatch_protocol.endpoint.deadlines import Deadlines
from kdispatch_protocol.endpoint.streams import Farewell, Stream

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.table import StreamTable

__all__ = ["Farewells"]


class Farewells:
    """The streams of a process whose programs have ended, and whose peers lack bytes of them.

    A RESET overtakes DATA, here and at the relay, and a lost session takes both along. So the RESET waits until the
    peer has acknowledged everything. That needs nothing of the wire, and outlives whatever the stream outlives.
    """

    def __init__(self, table: StreamTable, deadlines: Deadlines) -> None:
        self._table = table
        self._deadlines = deadlines

    def begin(self, stream: Stream, code: str, text: str, now: float, *, more: bool = False) -> None:
        """Reset ``stream`` once the peer has all that its program wrote; what still arrives for it is dropped.

        StreamWasReset follows, at once where the peer has everything. A peer that takes nothing for the time of
        ``Limits.last_words`` is reset without the rest. ``more``: more is to be written; call it again when it was.
        """
        if stream.ended:
            return
        self._table.now = now
        stream.expect(more=more)
        if stream.farewell is None:
            stream.close(Farewell(code, text, stream.inbound.consumed + self._table.limits.dropped))
            if stream.opened:  # before that it has the deadline of its open
                self._deadlines.linger(stream, now)
        self.look(stream)

    def look(self, stream: Stream) -> None:
        """Reset the stream if it waits for nothing any more: call it after each acknowledgement."""
        if stream.farewell is not None and stream.said:
            self._table.fail(stream, stream.farewell.code, stream.farewell.text)

    def dropped(self, stream: Stream, count: int, now: float) -> None:
        """So many bytes arrived behind the end of ``stream``'s program. They are credited, up to ``Limits.dropped``.

        A peer's program may send everything before it reads; without credit it never gets to the last words. With
        credit for every byte, a program that sends for ever would keep both agents and the relay busy meanwhile.
        """
        if stream.farewell is not None and not stream.ended:
            left = stream.farewell.credited_to - stream.inbound.consumed
            self._table.consumed(stream, min(count, max(left, 0)), now)
            if 0 < left <= count:
                self._deadlines.linger(stream, now)  # from now on it is a shorter one
