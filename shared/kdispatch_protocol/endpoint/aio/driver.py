"""Run an agent's endpoint on an event loop: sessions below, streams as transports above."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from kdispatch_protocol.endpoint.aio.programs import Programs
from kdispatch_protocol.endpoint.aio.slow_readers import SlowReaders
from kdispatch_protocol.endpoint.aio.transport import LocalConnection, StreamTransport
from kdispatch_protocol.endpoint.aio.uplink_session import UplinkSession
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.session.aio.alarm import Alarm
from kdispatch_protocol.session.aio.carrier import MakeCarrier
from kdispatch_protocol.session.aio.websocket_carrier import read_buffer
from kdispatch_protocol.wire.frames import Buffer, Frame

__all__ = ["EndpointDriver"]


# More than 25 methods: one-line interfaces for programs, transports, pipes and the link.
class EndpointDriver:
    """Connect an :class:`Endpoint` to a loop. Events of the session go to ``on_event``, in the loop's thread.

    Those are SessionReady, SessionRefused, PongReceived, Offered, OfferRefused, AttachRefused, StreamRequested,
    StreamOpened and StreamWasReset. The streams' transports get the other events.

    The driver does what :class:`Endpoint` asks of its caller. So after a command or an input here nothing is left to
    do: its frames go out at the end of the read, or in this turn of the loop.
    """

    def __init__(self, endpoint: Endpoint, on_event: Callable[[Event], None]) -> None:
        self.endpoint = endpoint
        self.loop = asyncio.get_running_loop()
        self.buffer = read_buffer()
        self.pipes: set[LocalConnection] = set()  # open local connections
        self._table = endpoint.table
        self._receiving = endpoint.receiving
        self._idle = asyncio.Event()
        self.programs = Programs(self, on_event, self._idle)
        self._table.sink = self.programs.deliver_data
        self._uplinks: dict[Session, UplinkSession] = {}
        self._slow = SlowReaders(endpoint.limits)
        self._alarm = Alarm(self.loop, self._timed_out)
        self._reading = False  # a read is being processed; its answers are sent at its end
        self._woken = False  # that read may have queued frames

    # --- sessions ----------------------------------------------------------------------------

    def connect(self, make: MakeCarrier, *, ping: float | None = None) -> UplinkSession:
        """Run a session over the carrier that ``make`` makes. If there is a session, streams move to the new one.

        Wait for ``lost`` of the result: it resolves when the session ends.

        ``ping`` is the silence in seconds after which this session sends a PING; the default is that of the limits.
        """
        uplink = UplinkSession(self, make, ping)
        self._uplinks[uplink.session] = uplink
        uplink.start()
        return uplink

    def disconnect(self, code: str = "", text: str = "") -> None:
        """End every session in order."""
        for uplink in list(self._uplinks.values()):
            uplink.close(code, text)

    def abort(self) -> None:
        """End every session at once; new ones may follow. Each session's ``lost`` resolves later."""
        for uplink in list(self._uplinks.values()):
            uplink.abort()

    def end_streams(self, code: str = "cancelled", text: str = "The agent ended.") -> None:
        """End every stream, and tell the peers if there is a session."""
        self._table.now = self.loop.time()
        for stream in list(self._table.by_uuid.values()):
            self._table.fail(stream, code, text)
        self.programs.deliver()
        self.wake()

    def give_up(self, service: str, code: str, text: str) -> None:
        """End a client's streams to a service that the agent gave up."""
        self._table.now = self.loop.time()
        self.endpoint.give_up(service, code, text)
        # Not at once: the caller is still handling the event of the first one.
        self.loop.call_soon(self.programs.deliver)
        self.wake()

    def stop(self) -> None:
        """End for good, and reset the remaining local connections."""
        self.abort()
        self.end_streams()
        for pipe in list(self.pipes):
            pipe.abort()
        self._slow.clear()
        self._alarm.cancel()

    def ping(self, value: int) -> None:
        """Send a PING with ``value``, which must not be 0; PongReceived follows."""
        self.endpoint.ping(value)
        self.wake()

    @property
    def sessions(self) -> list[UplinkSession]:
        """The live sessions, newest last."""
        return list(self._uplinks.values())

    @property
    def streams(self) -> int:
        """Number of streams."""
        return len(self._table.by_uuid)

    @property
    def carried(self) -> int:
        """Bytes of programs transferred both ways since this process began."""
        return self._table.resumption.carried

    @property
    def waiting(self) -> int:
        """Number of running streams that wait for their own or their peer's session to return."""
        return sum(stream.grace is not None for stream in self._table.by_uuid.values())

    async def drain(self, seconds: float) -> None:
        """Wait until no stream is left and programs have all bytes, for at most ``seconds``."""
        over = False

        def end() -> None:
            nonlocal over
            over = True
            self._idle.set()

        # Not with asyncio.timeout: before Python 3.11.3 that raises CancelledError in a task that was cancelled before.
        timer = self.loop.call_later(seconds, end)
        try:
            while (self.streams or self.pipes) and not over:
                self._idle.clear()
                await self._idle.wait()
        finally:
            timer.cancel()

    # --- streams ---------------------------------------------------------------------------------

    def open(
        self, service: str, protocol: asyncio.BaseProtocol, token: str | None = None, *, pin: str = ""
    ) -> StreamTransport:
        """Open a stream to a service, or to its host ``pin``. The caller may write at once.

        StreamOpened or a reset follows.
        """
        random = secrets.token_bytes(48)  # one call for both: the system's randomness costs some 10 us
        stream = self._table.open(service, random[32:].hex(), self.loop.time(), token, random[:32], pin=pin)
        return self._add(stream, protocol)

    def accept(self, stream: Stream, protocol: asyncio.BaseProtocol) -> StreamTransport:
        """Accept a requested stream whose service is connected. A stream that ended meanwhile is lost at once."""
        self._table.accept(stream, self.loop.time())
        transport = self._add(stream, protocol)
        if stream.ended:
            transport.reset("cancelled", "")
        return transport

    def refuse(self, stream: Stream, code: str, text: str) -> None:
        """Refuse a requested stream. No event follows."""
        self._table.reset(stream, code, text)
        self.wake()

    def _add(self, stream: Stream, protocol: asyncio.BaseProtocol) -> StreamTransport:
        transport = StreamTransport(self, stream, protocol)
        self.programs.transports[stream] = transport
        protocol.connection_made(transport)
        self.wake()
        return transport

    def write(self, stream: Stream, data: Buffer) -> bool:
        """For transports: queue bytes; returns whether to write more."""
        go_on = self._table.write(stream, data)
        self.wake()
        return go_on

    def write_eof(self, stream: Stream) -> None:
        """For transports: the program writes no more."""
        self._table.write_eof(stream)
        self.wake()

    def consume(self, stream: Stream, count: int) -> None:
        """For transports: the program took bytes; the peer gets their credit."""
        now = self._table.now if self._reading else self.loop.time()
        if self._table.consume(stream, count, now):
            self.wake()

    def close(self, stream: Stream) -> None:
        """For transports: the program closed the stream."""
        self._table.close(stream, self.loop.time())
        self.wake()

    def reset(self, stream: Stream, code: str, text: str) -> None:
        """For transports: reset the stream at once."""
        self._table.now = self.loop.time()  # the tombstone counts from now
        self._table.reset(stream, code, text)
        self.wake()

    def reset_behind(self, stream: Stream, code: str, text: str, *, more: bool = False) -> None:
        """For transports: reset once the peer has everything written, and with ``more`` what will be written."""
        self._table.farewells.begin(stream, code, text, self.loop.time(), more=more)
        if self._table.events and not self._reading:
            self.loop.call_soon(self.programs.deliver)
        self.wake()

    def wait_for_reader(self, transport: StreamTransport) -> None:
        """For transports: watch a program that must read more before it hears of a reset."""
        self._slow.add(transport, self.loop)

    def handle_pipe_end(self, pipe: LocalConnection) -> None:
        """For pipes: the local connection is closed."""
        self.pipes.discard(pipe)
        self._idle.set()

    def forget(self, stream: Stream) -> None:
        """For transports: deliver no more events of this stream."""
        self.programs.transports.pop(stream, None)

    # --- the loop -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Send queued frames in this turn of the loop, and set the timer."""
        if not self._table.by_uuid:
            self._idle.set()
        if len(self._uplinks) > 1:
            self._look_who_left()
        if self._reading:
            self._woken = True
            return  # `flush` follows
        for uplink in self._uplinks.values():
            outbox = uplink.session.outbox
            if outbox.control or outbox.acks or outbox.ring:
                uplink.link.wake()
        self._alarm.set(self._table.timers.next_deadline())

    def receive_local(self, pipe: LocalConnection, data: bytes) -> None:
        """For pipes: forward what was read from a local socket, and send the resulting frames at once."""
        if pipe.stream is not None and self._table.write_fast(pipe.stream.stream, data):
            return
        self.at_once(pipe.local_said, data)

    def at_once(self, act: Callable[..., object], *what: Any) -> None:
        """Call ``act`` and send the frames it makes before returning, as the loop's next turn reads first."""
        if self._reading:
            act(*what)
            return
        self._reading = True
        try:
            act(*what)
        finally:
            self._reading = False
            self.flush()

    def _timed_out(self) -> None:
        self.endpoint.handle_timeout(self.loop.time())
        self.programs.deliver()
        self.wake()

    # --- for sessions ---------------------------------------------------------------------------------

    def receive_frames(self, session: Session, received: list[Frame], now: float) -> None:
        """Handle the frames of one read, tell the programs, and send what both cause.

        On ``RemoteProtocolError`` close the session with its code: that sends what is queued in it.
        """
        self._reading = True
        try:
            self.endpoint.receive_frames(session, received, now)
        finally:
            try:
                if self._table.events or not self._table.by_uuid:
                    self.programs.deliver()
            finally:
                self._reading = False
        self.flush()

    def receive_frames_fast(self, session: Session, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """Fast path of :meth:`receive_frames`, for a read that is one DATA: pass it straight to its stream's program.

        Returns whether it did. If not, nothing was changed: call ``receive_frames``. Same as that:
        tests/aio/test_either_way.py::test_an_agent_does_the_same_either_way
        """
        table = self._table
        if table.events:
            return False
        now = self.loop.time()
        stream = self._receiving.data_fast(session, flags, number, value, len(payload), now)
        if stream is None:
            return False
        table.now = now
        self._reading = True
        try:
            if self.programs.deliver_data(stream, memoryview(payload)):
                self._woken = True
            if stream.ack_timer is None:  # what the program has yet to take is acknowledged after the delay as well
                table.acknowledge_later(stream, now)
                self._woken = True
            if table.events or not table.by_uuid:
                self.programs.deliver()
                self._woken = True
        finally:
            self._reading = False
            if self._woken:
                self.flush()
        return True

    def flush(self) -> None:
        """Send what the processed read produced, at once."""
        self._woken = False
        due = self._table.timers.next_deadline()
        if due is not None and due < self._alarm.at:
            self._alarm.set(due)
        for uplink in tuple(self._uplinks.values()):
            outbox = uplink.session.outbox  # without its method, as an open comes here five times
            if outbox.control or outbox.acks or outbox.ring:
                uplink.link.flush()
        if len(self._uplinks) > 1:
            self._look_who_left()

    def leave(self, uplink: UplinkSession) -> None:
        """The agent moved to a newer session: announce it in this one, and set its ``left`` when that is complete."""
        self.endpoint.leave(uplink.session)
        self.wake()

    def _look_who_left(self) -> None:
        for session, uplink in self._uplinks.items():
            if session.quiet and session.idle:
                uplink.left.set()

    def handle_session_lost(self, session: Session, text: str) -> None:
        """Handle the end of a session. Connect again: its streams wait for the next session."""
        del self._uplinks[session]
        self.endpoint.disconnect(session, self.loop.time(), text)
        self.programs.deliver()
        self.wake()  # its streams may continue in another session; otherwise their grace runs
