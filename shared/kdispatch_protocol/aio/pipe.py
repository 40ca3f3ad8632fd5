"""A local TCP connection tied to a stream: what the agents are made of.

Both are asyncio transports; each end's flow control pauses the other's reading.
A finished stream closes the connection politely, anything else resets it, so
that no program mistakes a failure for an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

from kdispatch_protocol.aio.transport import StreamTransport
from kdispatch_protocol.errors import StreamReset

__all__ = ["Pipe", "reset_connection"]

_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def reset_connection(transport: asyncio.Transport) -> None:
    """Abort a TCP connection with RST rather than FIN."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()


class Pipe:
    """The two protocols of one connection: ``local`` for the socket, ``remote`` for the stream.

    ``buffer`` is where the socket is read into, shared by everything on the loop.
    ``on_local`` is called when the socket is connected, ``on_end`` once when the
    pipe is over, with the code that ended it.
    """

    def __init__(
        self,
        buffer: memoryview,
        *,
        on_local: Callable[[Pipe], None] | None = None,
        on_end: Callable[[Pipe, str], None] | None = None,
    ) -> None:
        self.local = _Local(self, buffer)
        self.remote = _Remote(self)
        self.socket: asyncio.Transport | None = None
        self.stream: StreamTransport | None = None
        self._on_local = on_local
        self._on_end = on_end
        self._ended = False

    def local_made(self, transport: asyncio.Transport) -> None:
        """The socket is there."""
        self.socket = transport
        transport.set_write_buffer_limits(high=0)  # what the socket has not taken is not credited
        if self._on_local is not None:
            self._on_local(self)

    def hold(self) -> None:
        """Read nothing from the socket yet: there is no stream to take it."""
        if self.socket is not None:
            self.socket.pause_reading()

    def release(self) -> None:
        """There is a stream now."""
        if self.socket is not None and not self.socket.is_closing():
            self.socket.resume_reading()

    def end(self, code: str) -> None:
        """The pipe is over; ``closed`` is the polite way."""
        if self._ended:
            return
        self._ended = True
        if self.socket is not None:
            if code == "closed":
                self.socket.close()
            else:
                reset_connection(self.socket)
        if self._on_end is not None:
            self._on_end(self, code)


class _Local(asyncio.BufferedProtocol):
    """The socket's side."""

    def __init__(self, pipe: Pipe, buffer: memoryview) -> None:
        self._pipe = pipe
        self._buffer = buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports are none of asyncio's classes.
        self._pipe.local_made(cast("asyncio.Transport", transport))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._pipe.stream is not None:
            self._pipe.stream.write(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        if self._pipe.stream is not None:
            self._pipe.stream.write_eof()
        return True  # half-close: the other direction goes on

    def pause_writing(self) -> None:
        if self._pipe.stream is not None:
            self._pipe.stream.pause_reading()

    def resume_writing(self) -> None:
        if self._pipe.stream is not None:
            self._pipe.stream.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a loss is a loss
        stream = self._pipe.stream
        if stream is not None:
            stream.abort()  # does nothing to a stream that has finished
        self._pipe.end("cancelled")


class _Remote(asyncio.Protocol):
    """The stream's side."""

    takes_views = True

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        self._pipe.stream = transport

    def data_received(self, data: bytes) -> None:
        if self._pipe.socket is not None:
            self._pipe.socket.write(data)

    def eof_received(self) -> bool:
        local = self._pipe.socket
        if local is not None and not local.is_closing():
            local.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._pipe.socket is not None:
            self._pipe.socket.pause_reading()

    def resume_writing(self) -> None:
        local = self._pipe.socket
        if local is not None and not local.is_closing():
            local.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.end(exc.code if isinstance(exc, StreamReset) else "cancelled" if exc else "closed")
