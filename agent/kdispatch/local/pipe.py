"""A local TCP connection connected to a stream: the core of both agents.

Both are asyncio transports; flow control of each end pauses reading at the
other. A finished stream closes the connection normally. Everything else resets
it, including the death of this process, so that no program mistakes a failure
for a normal end.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, cast

from kdispatch.local.last_words import Parting, Remains, copy_of
from kdispatch.machine.operating_system import HERE
from kdispatch_protocol.endpoint.aio.transport import StreamTransport
from kdispatch_protocol.endpoint.states import State
from kdispatch_protocol.errors import StreamReset
from kdispatch_protocol.session.aio.handover import disown
from kdispatch_protocol.session.aio.writer import SocketWriter

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.aio.driver import EndpointDriver

__all__ = ["Pipe", "account", "reset_when_closed"]

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_LINGER_OFF: Final = struct.pack("ii", 0, 0)
# Largest read from a program: it is sent as one frame.
_READ_SIZE: Final = 128 * 1024
#: Seconds between checks of a paused socket, and the state to look for (Linux, tcp_states.h).
_LOOK_EVERY: Final = 1.0
_TCP_CLOSE: Final = 7


class Pipe:
    """The two protocols of one connection: ``local`` for the socket, ``remote`` for the stream.

    ``on_local`` is called when the socket is connected. ``on_end`` is called once, with a code,
    when the pipe is over. The driver counts pipes until their sockets are closed, because a
    stream may be finished while its last bytes still wait for a slow program. ``resets`` says
    that the socket, or its listener, has had :func:`reset_when_closed`: a second call would be
    a tenth of the cost of a short connection here.
    """

    __slots__ = (
        "_broke",
        "_ended",
        "_looking",
        "_on_end",
        "_on_local",
        "_parting",
        "_remains",
        "_resets",
        "_sock",
        "_unclaimed",
        "began",
        "driver",
        "local",
        "remote",
        "resuming",
        "socket",
        "stream",
        "table",
        "writer",
    )

    def __init__(
        self,
        driver: EndpointDriver,
        *,
        on_local: Callable[[Pipe], None] | None = None,
        on_end: Callable[[Pipe, str], None] | None = None,
        resets: bool = False,
    ) -> None:
        self.local = _Local(self, driver.buffer)
        self.remote = _Remote(self)
        self.socket: asyncio.Transport | None = None
        self.writer: SocketWriter | None = None
        self.stream: StreamTransport | None = None
        self.driver = driver
        self.table = driver.endpoint.table
        self.began = driver.loop.time()
        self._on_local = on_local
        self._on_end = on_end
        self._resets = resets
        self._sock: socket.socket | None = None  # that of `take`: asking uvloop's transport costs twice as much
        self._ended = False
        self._broke = 0  # errno of the socket's failure, if it was queried
        self._remains: Remains | None = None  # the socket is gone, and the kernel has more bytes of the program
        self._parting: Parting | None = None  # the stream was reset, and the program must read earlier bytes first
        self._looking = False
        self._unclaimed: tuple[bytes, ...] = ()  # bytes from before there was a stream
        self.resuming = False  # the socket took everything, and held bytes are being handed over

    def local_made(self, transport: asyncio.Transport) -> None:
        """The socket is connected."""
        self.socket = transport
        self.writer = SocketWriter(transport)
        self.driver.pipes.add(self)
        if not self._resets:  # from the start: a killed process must not look like a normal end
            self._linger(_LINGER_RESET)
        transport.set_write_buffer_limits(high=0)  # bytes that the socket has not taken are not credited
        if self._on_local is not None:
            self.driver.at_once(self._on_local, self)
        if self._ended:  # it ended before there was a socket
            self._reset(transport)
        elif self.stream is not None:
            self.stream.resume_reading()

    def take(self, sock: socket.socket, early: bytes = b"") -> None:
        """Use a connected socket. ``early`` was read from it before."""
        self._sock = sock
        if early and self.stream is not None:
            self.stream.write(early)
        elif early:
            self._unclaimed = (early,)
        making = self.driver.loop.create_connection(lambda: self.local, sock=sock)
        try:
            # A separate task would cost as much as the connection, and this only waits for one turn of the loop.
            turn = making.send(None)
        except OSError:  # macOS: the other end has already reset it
            sock.close()
            self.local_lost()
        else:
            turn.add_done_callback(functools.partial(self._taken, making))

    def _taken(self, making: Coroutine[Any, Any, tuple[asyncio.BaseTransport, object]], _: object) -> None:
        try:
            making.send(None)
        except StopIteration as done:
            transport = cast("asyncio.Transport", done.value[0])
        if transport.is_closing():  # otherwise the object is still used to set options
            disown(cast("socket.socket", self._sock))

    def local_said(self, data: bytes) -> None:
        """Handle bytes from the local program; empty bytes are its end."""
        if self._parting is not None:
            if data:
                self._parting.heard(len(data))  # and drop them
        elif self.stream is None:
            # On uvloop a pause in connection_made has no effect: keep what a service sends first.
            self._unclaimed += (data,)
            self.pause_socket()
        elif data:
            self.stream.write(data)
        else:
            self.stream.write_eof()

    def stream_made(self, stream: StreamTransport) -> None:
        """There is a stream: write to it what the local program has sent."""
        self.stream = stream
        if self.socket is None:
            stream.pause_reading()  # until there is a socket
        unclaimed, self._unclaimed = self._unclaimed, ()
        for data in unclaimed:
            self.local_said(data)

    def local_lost(self, error: Exception | None = None) -> None:
        """The socket is about to close. First the stream gets what the program sent before, then the reset."""
        self.driver.handle_pipe_end(self)
        if self._parting is not None:
            self._parting.cancel()
        stream, transport = self.stream, self.socket
        if self._ended or stream is None or transport is None or stream.stream.ended:
            self._lost()
            return
        broke = self._broke or (self.writer.error if self.writer is not None else 0)
        if not broke and isinstance(error, OSError):
            broke = error.errno or 0
        rest = None if stream.stream.outbound.eof else copy_of(transport)
        if rest is None:
            self._lost()
            return
        stream.reset_behind("cancelled", "", more=True)
        room = functools.partial(self.table.room, stream.stream)
        self._remains = Remains(rest, stream, broke, room=room, over=self._lost)
        self._remains.read()

    def _lost(self) -> None:
        """Nothing more can be read from the program."""
        if self.stream is not None:
            self.stream.reset_behind("cancelled", "")  # no effect on a finished stream
        self.end("cancelled")

    def end(self, code: str) -> None:
        """End the pipe. ``closed`` flushes and closes the connection normally; any other code resets it."""
        if self._ended:
            return
        self._ended = True
        if self._on_end is not None:
            self._on_end(self, code)
        if self._remains is not None:
            self._remains.close()
        if self.socket is None:
            return
        if code == "closed":
            self._linger(_LINGER_OFF)
            self.socket.close()
        elif not self.socket.is_closing() and self._parts():
            return
        else:
            self._reset(self.socket)

    def _parts(self) -> bool:
        """Whether the program gets time to read what arrived before a reset."""
        assert self.socket is not None
        parting = Parting(self, self.socket, self.driver.endpoint.limits)
        if parting.begin():
            self._parting = parting
        return self._parting is not None

    def finish(self) -> None:
        """Half-close: send no more to the local program, which may still send."""
        if self.stream is not None and self.stream.stream.state is State.CLOSED:
            return  # both directions finished: the close that follows does the same, without this system call
        if self.socket is not None and not self.socket.is_closing():
            try:
                self.socket.write_eof()
            except OSError:  # ENOTCONN: the program has reset the connection, and the loop has not seen it yet
                self._broken(0)

    def finish_later(self) -> None:
        """Call :meth:`finish` in the loop's next turn."""
        self.driver.loop.call_soon(self.finish)

    def abort(self) -> None:
        """Reset the connection, even while it is closing normally."""
        if self.socket is not None:
            self._linger(_LINGER_RESET)
            self._reset(self.socket)

    def pause_socket(self) -> None:
        """Pause reading. A reset is not reported meanwhile, so check for it at intervals."""
        if self.socket is not None and not self.socket.is_closing():
            self.socket.pause_reading()
            self._look_later()

    def resume_socket(self) -> None:
        """Resume reading."""
        if self._remains is not None:
            self._remains.read()
        elif self.socket is not None and not self.socket.is_closing():
            self.socket.resume_reading()

    def _broken(self, how: int) -> None:
        """The kernel reports, before the loop does, that the connection is gone. ``how``: errno, or 0 if unknown."""
        self._broke = self._broke or how
        if self.socket is not None:
            self._reset(self.socket)

    def _reset(self, transport: asyncio.Transport) -> None:
        HERE.reset(transport, self._sock)

    def _linger(self, how: bytes) -> None:
        sock = self._sock
        if sock is None and self.socket is not None:
            sock = self.socket.get_extra_info("socket")
        if sock is not None:
            _set_linger(sock, how)

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self.driver.loop.call_later(_LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._looking = False
        if self._ended or self.socket is None or self.socket.is_closing() or self.socket.is_reading():
            return
        if error := _error_of(self.socket.get_extra_info("socket")):
            self._broken(error)
        else:
            self._look_later()


def reset_when_closed(sock: socket.socket) -> None:
    """Let closing a socket without a pipe, or the end of its process, reset the connection, not end it normally.

    Accepted connections inherit this from their listener.
    """
    _set_linger(sock, _LINGER_RESET)


def _set_linger(sock: socket.socket, how: bytes) -> None:
    try:  # noqa: SIM105 - `suppress` costs as much as the call
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
    except (OSError, ValueError):  # uvloop raises ValueError for a closed socket
        pass


def account(pipe: Pipe) -> dict[str, float]:
    """What a pipe carried, for a log: bytes sent into the tunnel and received from it, and its age in seconds."""
    stream = pipe.stream.stream if pipe.stream is not None else None
    seconds = round(asyncio.get_running_loop().time() - pipe.began, 3)
    if stream is None:
        return {"sent": 0, "received": 0, "seconds": seconds}
    return {"sent": stream.outbound.end, "received": stream.inbound.received, "seconds": seconds}


def _error_of(sock: socket.socket | None) -> int:
    """The errno of a connection that the other end has reset; 0 if it has not, or if that can't be queried.

    The kernel also reports a connection as closed when both ends finished it, while bytes may still be unread. Only
    with an error it is a reset. The query clears the error, so the caller must end the pipe.
    """
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return 0
    try:
        closed = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if closed else 0
    except (OSError, ValueError):  # uvloop raises ValueError for a closed socket
        return 0


class _Local(asyncio.BufferedProtocol):
    """The socket's side."""

    __slots__ = ("_pipe", "_whole")

    def __init__(self, pipe: Pipe, buffer: memoryview) -> None:
        self._pipe = pipe
        self._whole = buffer[:_READ_SIZE]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports are not subclasses of asyncio's.
        self._pipe.local_made(cast("asyncio.Transport", transport))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        pipe = self._pipe
        room = pipe.table.room(pipe.stream.stream) if pipe.stream is not None else _READ_SIZE
        return self._whole if room >= _READ_SIZE else self._whole[:room]

    def buffer_updated(self, nbytes: int) -> None:
        self._pipe.driver.receive_local(self._pipe, self._whole[:nbytes].tobytes())

    def eof_received(self) -> bool:
        self._pipe.local_said(b"")
        return True  # half-close: the other direction continues

    def pause_writing(self) -> None:
        if self._pipe.stream is not None:
            self._pipe.stream.pause_reading()

    def resume_writing(self) -> None:
        if self._pipe.stream is not None:
            self._pipe.resuming = True
            self._pipe.stream.resume_reading()
            self._pipe.resuming = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.local_lost(exc)


class _Remote(asyncio.Protocol):
    """The stream's side."""

    __slots__ = ("_pipe",)

    takes_views = True

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        self._pipe.stream_made(transport)

    def data_received(self, data: bytes) -> None:
        writer = self._pipe.writer
        if writer is not None:
            writer.write_fast(data)

    def eof_received(self) -> bool:
        if self._pipe.resuming:
            # Inside resume_writing asyncio's transport would shut down twice, the second time with an error.
            self._pipe.finish_later()
        else:
            self._pipe.finish()
        return True

    def pause_writing(self) -> None:
        self._pipe.pause_socket()

    def resume_writing(self) -> None:
        self._pipe.resume_socket()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.end(exc.code if isinstance(exc, StreamReset) else "cancelled" if exc else "closed")
