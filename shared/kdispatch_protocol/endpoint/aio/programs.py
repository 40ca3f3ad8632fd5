"""The way from an endpoint to the programs: its events, and the data of its streams."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.aio.transport import StreamTransport
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.streams import Stream

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.aio.driver import EndpointDriver

__all__ = ["Programs"]

_FOR_TRANSPORTS: Final[dict[type, Callable[[StreamTransport, Any], None]]] = {
    events.EndReceived: lambda transport, _: transport.end_arrived(),
    events.EndAcknowledged: lambda transport, _: transport.end_acknowledged(),
    events.WritingResumed: lambda transport, _: transport.writing_resumed(),
    events.StreamFinished: lambda transport, _: transport.finished(),
    events.StreamWasReset: lambda transport, event: transport.was_reset(event.code, event.text),
}
_ENDS: Final = frozenset({events.StreamFinished, events.StreamWasReset})


class Programs:
    """Tells the streams' transports, and ``on_event`` of a driver, what the driver's endpoint reports.

    A failure of a program ends its stream, not the session.
    """

    def __init__(self, driver: EndpointDriver, on_event: Callable[[Event], None], idle: asyncio.Event) -> None:
        """``idle`` is set when no stream is left."""
        self.transports: dict[Stream, StreamTransport] = {}
        self._driver = driver
        self._table = driver.endpoint.table
        self._on_event = on_event
        self._idle = idle

    def deliver(self) -> None:
        """Handle all events of the endpoint, including those that their handlers cause."""
        if not self._table.by_uuid:
            self._idle.set()
        while happened := self._driver.endpoint.take_events():
            for event in happened:
                kind = type(event)
                act = _FOR_TRANSPORTS.get(kind)
                if act is not None:
                    stream = event.stream  # type: ignore[union-attr]  # events in that table have one
                    find = self.transports.pop if kind in _ENDS else self.transports.get
                    transport = find(stream, None)
                    if transport is not None:
                        try:
                            act(transport, event)
                        except Exception as error:  # noqa: BLE001 - as in `deliver_data`
                            self._failed(transport, error)
                if act is None or kind is events.StreamWasReset:
                    self._report(event)

    def deliver_data(self, stream: Stream, data: memoryview) -> bool:
        """Pass data to the stream's program, behind earlier events. It is the table's sink: no event is made of data.

        Returns whether that has queued a frame or set a deadline: then the driver must flush at the end of the read.
        """
        table = self._table
        if table.events:
            self.deliver()
        transport = self.transports.get(stream)
        if transport is None:
            return False
        try:
            taken = transport.data_arrived(data)
            return bool(taken) and table.consume(stream, taken, table.now)
        except Exception as error:  # noqa: BLE001 - a program's failure ends its stream, not the session
            self._failed(transport, error)
            return True

    def _failed(self, transport: StreamTransport, error: Exception) -> None:
        context = {"message": "a stream's protocol failed", "exception": error, "transport": transport}
        self._driver.loop.call_exception_handler(context)
        transport.reset("cancelled", "The program failed.")

    def _report(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - as in `deliver_data`
            context = {"message": "a kdispatch event's handler failed", "exception": error}
            self._driver.loop.call_exception_handler(context)
            if isinstance(event, events.StreamRequested):
                transport = self.transports.get(event.stream)
                end = transport.reset if transport is not None else functools.partial(self._driver.refuse, event.stream)
                end("host_refused", "The host's program failed.")
