"""An agent's endpoint on an event loop: sessions come and go below, streams are transports above."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import Callable
from typing import Any, Final

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.aio.slow_readers import SlowReaders
from kdispatch_protocol.endpoint.aio.transport import LocalConnection, StreamTransport
from kdispatch_protocol.endpoint.aio.uplink_session import UplinkSession
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.session.aio.alarm import Alarm
from kdispatch_protocol.session.aio.carrier import read_buffer
from kdispatch_protocol.wire.frames import Buffer, Frame

__all__ = ["EndpointDriver"]

_FOR_TRANSPORTS: Final[dict[type, Callable[[StreamTransport, Any], None]]] = {
    events.EndReceived: lambda transport, _: transport.end_arrived(),
    events.EndAcknowledged: lambda transport, _: transport.end_acknowledged(),
    events.WritingResumed: lambda transport, _: transport.writing_resumed(),
    events.StreamFinished: lambda transport, _: transport.finished(),
    events.StreamWasReset: lambda transport, event: transport.was_reset(event.code, event.text),
}
_ENDS: Final = frozenset({events.StreamFinished, events.StreamWasReset})


# More than 25 methods: the faces it shows to programs, transports, pipes and the link, one line each.
class EndpointDriver:
    """Ties an :class:`Endpoint` to a loop. What concerns the session goes to ``on_event``, in the loop's thread.

    Those are SessionReady, SessionRefused, PongReceived, Offered, OfferRefused, AttachRefused,
    StreamRequested, StreamOpened and StreamWasReset; the rest goes to the streams' transports.
    """

    def __init__(self, endpoint: Endpoint, on_event: Callable[[Event], None]) -> None:
        self.endpoint = endpoint
        self.loop = asyncio.get_running_loop()
        self.buffer = read_buffer()
        self.pipes: set[LocalConnection] = set()  # local connections that are not closed yet
        self._table = endpoint.table
        self._table.sink = self._data_arrived
        self._on_event = on_event
        self._uplinks: dict[Session, UplinkSession] = {}
        self._transports: dict[Stream, StreamTransport] = {}
        self._slow = SlowReaders(endpoint.limits)
        self._alarm = Alarm(self.loop, self._timed_out)
        self._idle = asyncio.Event()
        self._reading = False  # a read is being worked on; its answers go out at its end
        self._woken = False  # there may be some

    # --- sessions ----------------------------------------------------------------------------

    def connect(self, transport: asyncio.Transport, early: bytes = b"", *, ping: float | None = None) -> UplinkSession:
        """Run a session over an upgraded connection. If there is one already, streams move to the new one.

        In it the relay is asked after ``ping`` seconds of silence, if not after those of the limits.
        """
        uplink = UplinkSession(self, ping)
        self._uplinks[uplink.session] = uplink
        uplink.start(transport, early)
        return uplink

    def disconnect(self, code: str = "", text: str = "") -> None:
        """End every session in order."""
        for uplink in list(self._uplinks.values()):
            uplink.close(code, text)

    def abort(self) -> None:
        """End every session at once; others may follow."""
        for uplink in list(self._uplinks.values()):
            uplink.abort()

    def end_streams(self, code: str = "cancelled", text: str = "The agent ended.") -> None:
        """End every stream, and tell the peers as far as there is a session."""
        self._table.now = self.loop.time()
        for stream in list(self._table.by_uuid.values()):
            self._table.fail(stream, code, text)
        self._deliver()
        self.wake()

    def give_up(self, service: str, code: str, text: str) -> None:
        """End a client's streams to a service, for which nothing more is asked."""
        self._table.now = self.loop.time()
        self.endpoint.give_up(service, code, text)
        self.loop.call_soon(self._deliver)  # not at once: it is said of the first of them just now
        self.wake()

    def stop(self) -> None:
        """End for good; what is left of local connections is reset."""
        self.abort()
        self.end_streams()
        for pipe in list(self.pipes):
            pipe.abort()
        self._slow.clear()
        self._alarm.cancel()

    def ping(self, value: int) -> None:
        """Ask the relay to say ``value``, which is not 0; PongReceived follows."""
        self.endpoint.ping(value)
        self.wake()

    @property
    def sessions(self) -> list[UplinkSession]:
        """Those that are alive, the newest last."""
        return list(self._uplinks.values())

    @property
    def streams(self) -> int:
        """How many streams there are."""
        return len(self._table.by_uuid)

    @property
    def carried(self) -> int:
        """Bytes of programs that have got across, both ways, since this process began."""
        return self._table.resumption.carried

    @property
    def waiting(self) -> int:
        """How many running streams wait for a session, theirs or their peers', to be back."""
        return sum(stream.grace is not None for stream in self._table.by_uuid.values())

    async def drain(self, seconds: float) -> None:
        """Wait until there are no streams, and their programs have all bytes, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.streams or self.pipes:
                    self._idle.clear()
                    await self._idle.wait()

    # --- streams ---------------------------------------------------------------------------------

    def open(
        self, service: str, protocol: asyncio.BaseProtocol, token: str | None = None, *, pin: str = ""
    ) -> StreamTransport:
        """Begin a stream to a service, or to its host ``pin``. It may be written at once.

        StreamOpened or a reset follows.
        """
        random = secrets.token_bytes(48)  # of one call: the system's randomness costs some 10 us
        stream = self._table.open(service, random[32:].hex(), self.loop.time(), token, random[:32], pin=pin)
        return self._add(stream, protocol)

    def accept(self, stream: Stream, protocol: asyncio.BaseProtocol) -> StreamTransport:
        """Take a stream that was requested; its service is there. One that was given up meanwhile is lost at once."""
        self._table.accept(stream, self.loop.time())
        transport = self._add(stream, protocol)
        if stream.ended:
            transport.reset("cancelled", "")
        return transport

    def refuse(self, stream: Stream, code: str, text: str) -> None:
        """Refuse a stream that was requested."""
        self._table.reset(stream, code, text)
        self.wake()

    def _add(self, stream: Stream, protocol: asyncio.BaseProtocol) -> StreamTransport:
        transport = StreamTransport(self, stream, protocol)
        self._transports[stream] = transport
        protocol.connection_made(transport)
        self.wake()
        return transport

    def write(self, stream: Stream, data: Buffer) -> bool:
        """For transports; returns whether to go on writing."""
        go_on = self._table.write(stream, data)
        self.wake()
        return go_on

    def write_eof(self, stream: Stream) -> None:
        """For transports."""
        self._table.write_eof(stream)
        self.wake()

    def consumed(self, stream: Stream, count: int) -> None:
        """For transports: the program took bytes."""
        now = self._table.now if self._reading else self.loop.time()
        if self._table.consumed(stream, count, now):
            self.wake()

    def close(self, stream: Stream) -> None:
        """For transports."""
        self._table.close(stream, self.loop.time())
        self.wake()

    def reset(self, stream: Stream, code: str, text: str) -> None:
        """For transports."""
        self._table.now = self.loop.time()  # what is remembered of the stream counts from now
        self._table.reset(stream, code, text)
        self.wake()

    def reset_behind(self, stream: Stream, code: str, text: str, *, more: bool = False) -> None:
        """For transports: reset it when the peer has all that was written, and ``more`` that will be."""
        self._table.farewells.begin(stream, code, text, self.loop.time(), more=more)
        if self._table.events and not self._reading:
            self.loop.call_soon(self._deliver)
        self.wake()

    def wait_for_reader(self, transport: StreamTransport) -> None:
        """For transports: their program is to take more before it hears of a reset."""
        self._slow.add(transport, self.loop)

    def pipe_ended(self, pipe: LocalConnection) -> None:
        """For pipes: the local connection is closed."""
        self.pipes.discard(pipe)
        self._idle.set()

    def forget(self, stream: Stream) -> None:
        """For transports: no event of this stream is wanted any more."""
        self._transports.pop(stream, None)

    # --- the loop -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something was queued: send it in this turn of the loop, and keep the timer right."""
        if not self._table.by_uuid:
            self._idle.set()
        if len(self._uplinks) > 1:
            self._look_who_left()
        if self._reading:
            self._woken = True
            return  # `flush` follows
        for uplink in self._uplinks.values():
            if uplink.session.outbox:
                uplink.link.wake()
        self._alarm.set(self.endpoint.next_deadline())

    def local_read(self, pipe: LocalConnection, data: bytes) -> None:
        """For pipes: hand on what was read from a local socket, and send what comes of it at once."""
        if pipe.stream is not None and self._table.pass_on(pipe.stream.stream, data):
            return
        self.at_once(pipe.local_said, data)

    def at_once(self, act: Callable[[Any], None], what: Any) -> None:
        """Do something of which frames may come, and send these before returning: the loop's next turn reads first."""
        if self._reading:
            act(what)
            return
        self._reading = True
        try:
            act(what)
        finally:
            self._reading = False
            self.flush()

    def _timed_out(self) -> None:
        self.endpoint.handle_timeout(self.loop.time())
        self._deliver()
        self.wake()

    def _deliver(self) -> None:
        """Act on what happened, and on what that made happen."""
        if not self._table.by_uuid:
            self._idle.set()
        while happened := self.endpoint.take_events():
            for event in happened:
                kind = type(event)
                act = _FOR_TRANSPORTS.get(kind)
                if act is not None:
                    stream = event.stream  # type: ignore[union-attr]  # those in the table have one
                    find = self._transports.pop if kind in _ENDS else self._transports.get
                    transport = find(stream, None)
                    if transport is not None:
                        self._act(act, transport, event)
                if act is None or kind is events.StreamWasReset:
                    self._report(event)

    def _data_arrived(self, stream: Stream, data: memoryview) -> None:
        """The fast path of data: no event is made for it, and none waits that happened before."""
        if self._table.events:
            self._deliver()
        transport = self._transports.get(stream)
        if transport is not None:
            self._act(StreamTransport.data_arrived, transport, data)

    def _act(self, act: Callable[[StreamTransport, Any], None], transport: StreamTransport, what: Any) -> None:
        try:
            act(transport, what)
        except Exception as error:  # noqa: BLE001 - a program's failure ends its stream, not the session
            self._failed(transport, error)

    def _failed(self, transport: StreamTransport, error: Exception) -> None:
        context = {"message": "a stream's protocol failed", "exception": error, "transport": transport}
        self.loop.call_exception_handler(context)
        transport.reset("cancelled", "The program failed.")

    def _report(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - likewise
            self.loop.call_exception_handler({"message": "a kdispatch event's handler failed", "exception": error})
            if isinstance(event, events.StreamRequested):
                transport = self._transports.get(event.stream)
                end = transport.reset if transport is not None else functools.partial(self.refuse, event.stream)
                end("host_refused", "The host's program failed.")

    # --- for sessions ---------------------------------------------------------------------------------

    def pass_on(self, session: Session, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """The fast path of a receiver: a DATA that came alone goes straight to its stream's program.

        Returns whether it did; if not, nothing was done, and it is one more frame for :meth:`frames_arrived`.
        """
        table = self._table
        if table.events:
            return False
        now = self.loop.time()
        stream = session.accept_data(flags, number, value, len(payload), now)
        if stream is None:
            return False
        table.now = now
        self._reading = True
        try:
            transport = self._transports.get(stream)
            if transport is not None:
                try:
                    transport.data_arrived(memoryview(payload))
                except Exception as error:  # noqa: BLE001 - as in `_act`
                    self._failed(transport, error)
            if stream.ack_timer is None:  # what the program has yet to take is acknowledged after the delay, too
                table.acknowledge_later(stream, now)
                self._woken = True
            if table.events or not table.by_uuid:
                self._deliver()
                self._woken = True
        finally:
            self._reading = False
            if self._woken:
                self.flush()
        return True

    def frames_arrived(self, session: Session, received: list[Frame], now: float) -> None:
        """Frames of the relay's; ``flush`` follows."""
        self._reading = True
        try:
            self.endpoint.receive_frames(session, received, now)
        finally:
            try:
                if self._table.events or not self._table.by_uuid:
                    self._deliver()
            finally:
                self._reading = False

    def flush(self) -> None:
        """Something was worked on: what came of it goes out at once."""
        self._woken = False
        self._alarm.set(self.endpoint.next_deadline())
        for uplink in tuple(self._uplinks.values()):
            if uplink.session.outbox:
                uplink.link.flush()
        if len(self._uplinks) > 1:
            self._look_who_left()

    def leave(self, uplink: UplinkSession) -> None:
        """The agent has gone over to a newer session: say so in this one, and set its ``left`` when all is done."""
        self.endpoint.leave(uplink.session)
        self.wake()

    def _look_who_left(self) -> None:
        for session, uplink in self._uplinks.items():
            if session.quiet and session.idle:
                uplink.left.set()

    def collect(self, session: Session, most: int, now: float) -> list[Buffer]:
        """The session's next batch."""
        parts = self.endpoint.data_to_send(session, most, now)
        if self._table.events:
            # Not here: what a program does now, such as ending the session, must not overtake this batch.
            self.loop.call_soon(self._deliver)
        return parts

    def session_lost(self, session: Session, text: str) -> None:
        """A session is over."""
        del self._uplinks[session]
        self.endpoint.disconnect(session, self.loop.time(), text)
        self._deliver()
        self.wake()  # its streams may go on in another session; else they have a grace
