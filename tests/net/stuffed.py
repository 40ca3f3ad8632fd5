"""Connections through a tunnel whose programs, at both ends, write all they can and read nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.net.harness import KIB, eventually
from tests.net.tcp import Service, Tcp, service

__all__ = ["Stuffed", "stuffed"]

_BLOCK: Final = bytes(range(256)) * 32
_AT_REST: Final = 0.5  # seconds in which no byte was accepted: all is full
_RESET: Final = 60.0  # seconds
_SMALL: Final = 16 * KIB  # the most that the kernel may hold of each connection at a program's end


class Stuffed:
    """The programs. First they greet, then they wait for :meth:`fill`."""

    def __init__(self) -> None:
        self.written = 0
        self.resets = 0  # connections that were reset, at both ends together
        self.service = Service(0)
        self._connections: list[asyncio.Task[None]] = []
        self._writing = asyncio.Event()

    async def connect(self, port: int, count: int) -> None:
        """Open this many connections, with nothing written yet."""
        self.resets = self.written = 0
        self._writing.clear()
        greeted = asyncio.Barrier(count + 1)
        self._connections = [asyncio.create_task(self._client(port, greeted)) for _ in range(count)]
        async with asyncio.timeout(60):
            await greeted.wait()

    async def fill(self) -> None:
        """Write until no more bytes are accepted."""
        self._writing.set()
        before = -1
        while before != self.written:
            before = self.written
            await asyncio.sleep(_AT_REST)

    async def are_reset(self) -> None:
        """Return when the connections of all programs at both ends have been reset.

        That may take a while. A kernel with a full receive buffer may have dropped bytes, and then does not accept the
        reset that comes after them. It learns of it when it next asks whether it may send (RFC 5961, 3.2).
        """
        await eventually(lambda: (self.resets, self.service.open), (2 * len(self._connections), 0), _RESET)
        await asyncio.gather(*self._connections)

    async def serve(self, tcp: Tcp) -> None:
        _keep_small(tcp)
        await tcp.send(b"!")
        await self._write(tcp)

    async def _client(self, port: int, greeted: asyncio.Barrier) -> None:
        async with await Tcp.connect(port, receive_buffer=_SMALL) as tcp:
            _keep_small(tcp)
            assert await tcp.receive_exactly(1) == b"!"
            await greeted.wait()
            await self._write(tcp)

    async def _write(self, tcp: Tcp) -> None:
        await self._writing.wait()
        try:
            while True:
                await tcp.send(_BLOCK)
                self.written += len(_BLOCK)
        except ConnectionError:
            self.resets += 1

    async def end(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


def _keep_small(tcp: Tcp) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        tcp.sock.setsockopt(socket.SOL_SOCKET, option, _SMALL)


@asynccontextmanager
async def stuffed() -> AsyncIterator[Stuffed]:
    """Programs whose service runs."""
    programs = Stuffed()
    async with service(programs.serve) as programs.service:
        try:
            yield programs
        finally:
            await programs.end()
