"""Frames of an agent's streams, as they arrive from the relay: each is applied to its stream. Sans-I/O.

The relay's half is ``switch/passing.py``: there a stream's frames are checked and passed on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import Input, LegState, State
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.endpoint.table import StreamTable
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Opened, Trying

__all__ = ["Receiving"]


class Receiving:
    """Applies frames to the streams of ``table``. A ``RemoteProtocolError`` ends the stream, not its session."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table
        #: Handlers of frames for streams in the table, by type. Frames for any other number are late and dropped.
        self.handlers: Final[dict[int, Callable[[Stream, int, int, memoryview, float], None]]] = {
            frames.TRYING: self._trying,
            frames.OPENED: self._opened,
            frames.DATA: self.data,
            frames.ACK: self._ack,
            frames.FIN: self._fin,
            frames.GONE: self._gone,
        }

    def data(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        """Check order and limit, and pass what is new to the program. It is acknowledged later."""
        if stream.leg is not LegState.JOINED or not stream.confirmed:
            self._must_be_open(stream)
        known = stream.inbound.accept(value, len(payload))
        if stream.closing:
            if stream.farewell is None:
                self._table.farewells.begin(stream, "cancelled", "The program had closed.", now)
            self._table.farewells.dropped(stream, len(payload) - known, now)
        elif known < len(payload):
            stream.inbound.note(flags, len(payload) - known, now)
            self._table.deliver(stream, payload[known:] if known else payload)
            # The acknowledgement waits for `consume`, or for the delay.
            if stream.ack_timer is None:
                self._table.acknowledge_later(stream, now)

    @staticmethod
    def data_fast(  # noqa: PLR0917 - one frame's fields
        session: Session, flags: int, number: int, value: int, size: int, now: float
    ) -> Stream | None:
        """Fast path of :meth:`data`: record ``size`` bytes that are exactly the next ones of a running stream.

        Returns the stream: pass the bytes to its program, and see to their acknowledgement. ``None`` in every other
        case: nothing was changed, handle the DATA as a frame. Same as ``data``:
        tests/core/test_fast_paths.py::test_a_receiver_does_the_same_either_way
        """
        stream = session.by_number.get(number)
        if (
            stream is None
            or stream.leg is not LegState.JOINED
            or not stream.confirmed
            or stream.closing
            or not stream.inbound.accept_fast(value, size)
        ):
            return None
        if flags or stream.inbound.grows:
            stream.inbound.note(flags, size, now)
        return stream

    # --- other frames ------------------------------------------------------------------------------

    def _trying(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        trying = Trying.parse(payload)
        if not stream.is_client or stream.leg is not LegState.ASKED:
            raise RemoteProtocolError("A TRYING for a stream that is not being opened.")
        stream.tried(trying.attempt, sys.intern(trying.process), sys.intern(trying.host))
        self._table.activate(stream)

    def _opened(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        opened = Opened.parse(payload)
        if stream.leg is not LegState.ASKED or stream.state is not State.TRYING or opened.attempt != stream.attempt:
            raise RemoteProtocolError("An OPENED for a stream that is not being opened.")
        if opened.limit < self._table.limits.early:
            raise RemoteProtocolError("The first limit is below the floor.")
        stream.outbound.limit = opened.limit
        self._table.receive_opened(stream)

    def _ack(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        self._must_be_open(stream)
        fin = bool(flags & frames.FIN_ARRIVED)
        out = stream.outbound
        acknowledged_before = out.fin_acked
        self._table.handle_acknowledged(stream, out.acknowledge(value, frames.ack_limit(payload), fin=fin))
        if fin and not acknowledged_before:
            self._table.handle_end_acknowledged(stream)
        else:
            self._table.activate(stream)
        if stream.farewell is not None:
            self._table.farewells.look(stream)

    def _fin(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        self._must_be_open(stream)
        if stream.farewell is not None:
            return  # the program did not get all data: end the stream by a reset, never as finished
        known = stream.inbound.finished
        stream.inbound.finish(value)
        self._table.acknowledge_soon(stream)
        if not known:
            stream.move(Input.FIN_ARRIVED)
            self._table.events.append(events.EndReceived(stream))
            self._table.if_finished(stream)

    def _gone(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        if stream.leg is LegState.ASKED:
            raise RemoteProtocolError("A GONE for a stream that is not open yet.")
        self._table.resumption.gone(stream, now)

    def _must_be_open(self, stream: Stream) -> None:
        if stream.leg is not LegState.JOINED:
            raise RemoteProtocolError("A frame for a stream that is not open, or not attached again.")
        if not stream.confirmed:
            self._table.confirm(stream)
