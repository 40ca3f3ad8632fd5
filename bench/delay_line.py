"""A connection with a delay: bytes that enter it leave it later, in order.

In a test's own loop it is ``delay_line``; for measurements it is a separate process, which prints its port:
python -m bench.delay_line PORT SECONDS [BYTES_A_SECOND]. With a rate it is a slow leg that all connections share,
each with a short queue.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

__all__ = ["DelayLine", "delay_line"]

#: Largest number of bytes in flight in one direction of a connection: half a second at 500 MB/s.
_ROOM: Final = 256 * 1024 * 1024
#: Seconds that a connection's bytes may queue at a slow leg, besides the delay: a router's buffer, kept short.
_QUEUE: Final = 0.05
#: Bytes that leave a slow leg at a time.
_PACKET: Final = 1500
#: Bytes of kernel buffers at a slow leg: small, so that bytes queue in this process, which measures them.
_KERNEL: Final = 16 * 1024


class DelayLine:
    """Connections to ``port`` with a delay of ``seconds`` each way; ``rate`` is bytes per second, 0 is no limit."""

    def __init__(self, port: int, seconds: float, rate: float = 0.0) -> None:
        self.port = 0  # the port to connect to
        self.to = port
        self.seconds = seconds
        self.rate = rate
        self.loop = asyncio.get_running_loop()
        self.entered = self.loop.time()  # time of the last arrival
        self.free = {True: 0.0, False: 0.0}  # when all bytes so far have left, per direction
        self.ends: set[_End] = set()

    async def rest(self, seconds: float) -> None:
        """Return when nothing has arrived for ``seconds``."""
        while (left := self.entered + seconds - self.loop.time()) > 0:  # noqa: ASYNC110 - a time that moves
            await asyncio.sleep(left)

    async def listen(self) -> asyncio.Server:
        """Start to listen on ``port``."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        if self.rate:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL)
        server = await self.loop.create_server(lambda: _End(self, None), sock=listener)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def connect(self, entered: _End) -> None:
        """Connect to the target port for an incoming connection."""
        other = _End(self, entered)
        sock = socket.socket()
        sock.setblocking(False)
        if self.rate:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL)
        try:
            await self.loop.sock_connect(sock, ("127.0.0.1", self.to))
            await self.loop.create_connection(lambda: other, sock=sock)
        except OSError:
            sock.close()
            entered.abort()


class _End(asyncio.Protocol):
    """One end of a connection: its bytes leave at the other end after the delay."""

    def __init__(self, line: DelayLine, other: _End | None) -> None:
        self._line = line
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.way = _Way(line, self.finished, there=other is None)
        self._connecting: asyncio.Task[None] | None = None

    def finished(self) -> None:
        """Handle the end of one direction; after both the connection is closed."""
        other = self.other
        if other is not None and self.way.ended and other.way.ended:
            for end in (self, other):
                if end.transport is not None:
                    end.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's class is not a subclass of this
        self._line.ends.add(self)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without Nagle's algorithm, which would add delays
        self.way.from_ = self.transport
        if self.other is None:
            self._connecting = self._line.loop.create_task(self._line.connect(self))
        else:
            self.other.other = self
            self.way.to, self.other.way.to = self.other.transport, self.transport
            self.other.way.leave()

    def data_received(self, data: bytes) -> None:
        self._line.entered = self._line.loop.time()
        self.way.enter(data)

    def eof_received(self) -> bool:
        self._line.entered = self._line.loop.time()
        self.way.enter(b"")
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.way.hold()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.way.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        self._line.ends.discard(self)
        self.way.from_ = None
        if self.other is not None:
            self.other.way.drop()
            if error is not None:
                self.other.abort()

    def abort(self) -> None:
        """Reset the connection at this end."""
        if self.transport is not None:
            self.transport.abort()


class _Way:
    """One direction: pieces with their departure times."""

    def __init__(self, line: DelayLine, finished: Callable[[], None], *, there: bool) -> None:
        self._line = line
        self._finished = finished
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._there = there
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self._paused = False
        self.ended = False  # the end has left, too
        self._room = max(_PACKET, int(line.rate * (line.seconds + _QUEUE))) if line.rate else _ROOM
        self.from_: asyncio.Transport | None = None
        self.to: asyncio.Transport | None = None

    def enter(self, data: bytes) -> None:
        """Accept a piece; an empty one is the end."""
        now = self._line.loop.time()
        if not self._line.rate:
            self._pieces.append((now + self._line.seconds, data))
        else:
            for start in range(0, max(len(data), 1), _PACKET):
                packet = data[start : start + _PACKET]
                due = max(self._line.free[self._there], now) + len(packet) / self._line.rate
                self._line.free[self._there] = due
                self._pieces.append((due + self._line.seconds, packet))
        self._size += len(data)
        if self._size > self._room and not self._paused and self.from_ is not None:
            self._paused = True
            self.from_.pause_reading()
        if self._timer is None:
            self.leave()

    def leave(self) -> None:
        """Send the pieces that are due, and set a timer for the next one."""
        self._timer = None
        if self.to is None or self._held:
            return
        now = self._line.loop.time()
        while self._pieces and not self._held:
            due, data = self._pieces[0]
            if due > now:
                self._timer = self._line.loop.call_at(due, self.leave)
                break
            self._pieces.popleft()
            self._size -= len(data)
            if data:
                self.to.write(data)
            else:
                self.ended = True
                self.to.write_eof()
                self._finished()
        if self._paused and self._size <= self._room // 2 and self.from_ is not None:
            self._paused = False
            self.from_.resume_reading()

    def hold(self) -> None:
        """Stop sending: the far end's buffer is full."""
        self._held = True

    def go_on(self) -> None:
        """Send again."""
        self._held = False
        if self._timer is None:
            self.leave()

    def drop(self) -> None:
        """Discard all bytes in flight: the far end is gone."""
        self._pieces.clear()
        self.to = None


@asynccontextmanager
async def delay_line(port: int, seconds: float, rate: float = 0.0) -> AsyncIterator[DelayLine]:
    """Run a delay line to ``port`` on this machine, with ``seconds`` each way."""
    line = DelayLine(port, seconds, rate)
    server = await line.listen()
    try:
        yield line
    finally:
        server.close()
        for end in list(line.ends):
            end.abort()
        await asyncio.sleep(0)


async def _main(port: int, seconds: float, rate: float = 0.0) -> None:
    async with delay_line(port, seconds, rate) as line:
        print(line.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), *map(float, sys.argv[2:])))
