"""A stream's end as an asyncio transport, so that any asyncio program can run over a tunnel."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, cast

from kdispatch_protocol.endpoint.replay import gather
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import StreamReset
from kdispatch_protocol.wire.frames import Buffer

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.aio.driver import EndpointDriver

__all__ = ["LocalConnection", "StreamTransport"]


class TakesViews(Protocol):
    """A protocol with ``takes_views`` set gets memoryviews in ``data_received``, which saves a copy."""

    takes_views: bool


class LocalConnection(Protocol):
    """A local program's connection that belongs to a stream; the agent creates it."""

    began: float  # on the loop's clock
    socket: asyncio.Transport | None
    stream: StreamTransport | None

    def local_said(self, data: bytes) -> None:
        """Handle bytes from the local program; empty bytes are its end."""
        ...

    def abort(self) -> None:
        """Reset the connection."""
        ...


# More than 25 methods: most of them are those of asyncio.Transport.
class StreamTransport(asyncio.Transport):
    """The program's side of one stream.

    The transport returns credit to the peer for what the protocol took. Bytes count
    as taken when they are handed over and reading is not paused afterwards;
    otherwise when reading resumes.
    """

    __slots__ = (
        "_closing",
        "_driver",
        "_failure",
        "_finished",
        "_held",
        "_held_eof",
        "_lost",
        "_paused",
        "_protocol",
        "_thrown_away",
        "_uncredited",
        "_views",
        "_writing_paused",
        "stream",
    )

    def __init__(self, driver: EndpointDriver, stream: Stream, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._driver = driver
        self.stream = stream
        self._protocol = protocol
        self._views = bool(getattr(protocol, "takes_views", False))
        self._paused = False
        self._held: deque[Buffer] | None = None  # arrived while reading is paused
        self._held_eof = False
        self._uncredited = 0  # handed over, but the protocol paused during that call
        self._closing = False
        self._finished = False  # the stream finished, and the protocol has not taken all bytes yet
        self._failure: StreamReset | None = None  # the stream was reset, and the protocol has not taken all bytes yet
        self._thrown_away = 0  # bytes that the program wrote after the reset
        self._lost = False
        self._writing_paused = False

    def __repr__(self) -> str:
        return f"<StreamTransport {self.stream!r}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``service``, ``host`` (its id) and ``stream`` (its uuid); ``peername`` is the pair of service and host."""
        known = {
            "service": self.stream.service,
            "host": self.stream.host,
            "stream": self.stream.uuid,
            "peername": (self.stream.service, self.stream.host),
        }
        return known.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Pass later bytes and events to another protocol."""
        self._protocol = protocol
        self._views = bool(getattr(protocol, "takes_views", False))

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The current protocol."""
        return self._protocol

    # --- writing -----------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        """Queue bytes for the peer; the protocol is paused when too many are pending."""
        if self._closing or self._lost or not data:
            return
        if not self._driver.write(self.stream, data):
            if not self._writing_paused:
                self._writing_paused = True
                self._protocol.pause_writing()
        elif self._failure is not None:  # the program has not taken the last bytes, and its own are dropped
            self._thrown_away += len(data)
            if self._thrown_away > self.stream.limits.dropped:
                self.give_up()

    def writelines(self, list_of_data: Any) -> None:
        """Queue several pieces of bytes."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Write no more; reading continues."""
        if not self._closing and not self._lost:
            self._driver.write_eof(self.stream)

    def can_write_eof(self) -> bool:
        """True: each direction ends independently."""
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes written but not sent."""
        return self.stream.outbound.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Check the arguments and ignore them: all streams use the protocol's limit (``Limits.unsent``)."""
        if high is not None and low is not None and not 0 <= low <= high:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high water mark in bytes."""
        unsent = self.stream.limits.unsent
        return unsent // 2, unsent

    # --- reading -------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether data is handed over on arrival."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Hand over nothing for now; the peer runs out of credit."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand over what is held, and continue. For a program's own protocol this happens in a later turn of the loop.

        asyncio's ``StreamReader`` resumes before it has a waiter. If it paused again during that call, it would wait
        for ever.
        """
        if not self._paused or self._closing or self._lost:
            return
        self._paused = False
        if self._views:
            self._go_on()
        else:
            self._driver.loop.call_soon(self._go_on_later)

    def _go_on_later(self) -> None:
        if self.is_reading() and not self._lost:
            self._go_on()

    def _go_on(self) -> None:
        self._credit(self._uncredited)
        self._uncredited = 0
        while self._held and not self._paused:
            self._credit(self._hand_over(self._held.popleft()))
        if not self._held:
            self._held = None  # an empty deque is 760 bytes
        if self._held_eof and not self._paused and not self._held:
            self._held_eof = False
            self._eof()
        self._lost_if_over()
        self._driver.wake()

    # --- the end ---------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether the transport is closed or closing."""
        return self._closing or self._lost

    def close(self) -> None:
        """Send what is pending and the end; ``connection_lost`` follows. Data that the peer still sends is refused."""
        if not self._closing and not self._lost:
            self._closing = True
            self._drop_unread()
            self._driver.close(self.stream)
            if self.stream.ended or self.stream.outbound.fin_acked:
                self._schedule_lost(self._failure)

    def abort(self) -> None:
        """Reset the stream."""
        self.reset("cancelled", "")

    def reset(self, code: str, text: str) -> None:
        """Reset the stream and tell the peer why."""
        if not self._lost:
            self._driver.reset(self.stream, code, text)
            self._driver.forget(self.stream)
            self._schedule_lost(None)

    def add(self, data: Buffer) -> None:
        """After :meth:`reset_behind` with ``more``: queue more of the program's last bytes."""
        if not self._lost and not self._driver.write(self.stream, data):
            self._writing_paused = True

    def add_eof(self) -> None:
        """After :meth:`reset_behind` with ``more``: queue the end behind the program's last bytes."""
        if not self._lost:
            self._driver.write_eof(self.stream)

    def reset_behind(self, code: str, text: str, *, more: bool = False) -> None:
        """Read no more, and reset the stream once the peer has everything written; ``connection_lost`` follows.

        With ``more`` the rest of the program's bytes follows by :meth:`add`, and then another call without ``more``.
        """
        if not self._lost:
            self._closing = True
            self._drop_unread()
            self._driver.reset_behind(self.stream, code, text, more=more)

    # --- called by the driver ----------------------------------------------------------------------

    def data_arrived(self, data: memoryview) -> int:
        """Handle the peer's bytes, in memory that is reused afterwards. Returns how many of them the program took.

        The caller credits those at once. The transport credits the others when the program takes them.
        """
        if self._closing or self._lost:
            return 0
        if self._paused or self._held:
            if self._held is None:
                self._held = deque()
            gather(self._held, bytes(data))
            return 0
        return self._hand_over(data)

    def end_arrived(self) -> None:
        """Handle the peer's end, after all its bytes."""
        if self._paused or self._held:
            self._held_eof = True
        elif not self._closing and not self._lost:
            self._eof()

    def end_acknowledged(self) -> None:
        """The peer has everything: a closed transport is done."""
        if self._closing:
            self._schedule_lost(None)

    def writing_resumed(self) -> None:
        """Tell the protocol to write again, because few bytes are pending.

        If the program wrote too much meanwhile, this event is outdated, and another one follows. Resuming on the
        outdated event would lose the later one.
        """
        if self._writing_paused and not self._lost and (self.stream.ended or not self.stream.writer_paused):
            self._writing_paused = False
            self._protocol.resume_writing()

    def finished(self) -> None:
        """Both directions ended normally. Held bytes are handed over before ``connection_lost``."""
        self._finished = True
        self._lost_if_over()

    def was_reset(self, code: str, text: str) -> None:
        """The stream was reset by the peer, the relay or the endpoint."""
        error = StreamReset.from_wire(code, text, "cancelled")
        if not self._held and not self._held_eof:
            self._schedule_lost(error)
        elif self._failure is None:
            self._failure = error  # the program hears of it after the bytes that it has not taken yet
            self._driver.wait_for_reader(self)
            self.writing_resumed()  # what it writes is dropped

    @property
    def held(self) -> int:
        """Bytes that the program has not taken yet; 0 once it has lost the stream."""
        return 0 if self._lost else sum(map(len, self._held or ())) + self._held_eof

    def give_up(self) -> None:
        """The program reads nothing: tell it of the reset without the rest."""
        self._schedule_lost(self._failure)

    # --- inner -----------------------------------------------------------------------------------------

    def _hand_over(self, data: Buffer) -> int:
        """Pass bytes to the program; returns how many to credit."""
        protocol: Any = self._protocol
        if self._views:
            protocol.data_received(data)
        elif isinstance(protocol, asyncio.BufferedProtocol):
            self._fill(protocol, memoryview(data))
        else:
            protocol.data_received(bytes(data))
        if self._paused and not self._closing:
            self._uncredited += len(data)
            return 0
        return len(data)

    @staticmethod
    def _fill(protocol: asyncio.BufferedProtocol, data: memoryview) -> None:
        while data:
            room = memoryview(protocol.get_buffer(len(data)))
            count = min(len(room), len(data))
            if not count:
                raise RuntimeError("get_buffer() returned an empty buffer")
            room[:count] = data[:count]
            protocol.buffer_updated(count)
            data = data[count:]

    def _credit(self, count: int) -> None:
        if count:
            self._driver.consume(self.stream, count)

    def _drop_unread(self) -> None:
        unread = self._uncredited + sum(map(len, self._held or ()))
        self._held, self._held_eof, self._uncredited = None, False, 0
        self._credit(unread)  # so that a peer with more data sends it, and gets the reset

    def _eof(self) -> None:
        protocol = cast("asyncio.Protocol", self._protocol)
        keep_open = protocol.eof_received()
        if not keep_open and not self._finished:
            self.close()

    def _lost_if_over(self) -> None:
        """Schedule ``connection_lost`` if the stream is over and all held bytes were handed over."""
        if (self._finished or self._failure is not None) and not self._held and not self._held_eof:
            self._schedule_lost(self._failure)

    def _schedule_lost(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._driver.loop.call_soon(self._connection_lost, error)

    def _connection_lost(self, error: Exception | None) -> None:
        self._held = None
        self._protocol.connection_lost(error)
