"""A way to a port that takes time: whatever enters it leaves it so much later, in order, however much it is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.net.tcp import Tcp, service

__all__ = ["DelayLine", "delay_line"]


class DelayLine:
    """Connections to ``port``, each way of which takes ``seconds``."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = 0  # where it is entered
        self._to = port
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._entered = self._loop.time()  # when something last did

    async def rest(self, seconds: float) -> None:
        """Return when nothing has entered for so long."""
        while (left := self._entered + seconds - self._loop.time()) > 0:  # noqa: ASYNC110 - a time that moves
            await asyncio.sleep(left)

    async def carry(self, tcp: Tcp) -> None:
        async with await Tcp.connect(self._to) as other:
            for end in (tcp, other):
                end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Nagle's waits are none of ours
            ways = [asyncio.create_task(self._way(*ends)) for ends in ((tcp, other), (other, tcp))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _way(self, from_: Tcp, to: Tcp) -> None:
        under_way = asyncio.Queue[tuple[float, bytes]]()

        async def enter() -> None:
            piece = b"first"
            while piece:
                piece = await from_.receive()
                self._entered = self._loop.time()
                under_way.put_nowait((self._entered + self._seconds, piece))

        async def leave() -> None:
            while True:
                due, piece = await under_way.get()
                await asyncio.sleep(due - self._loop.time())
                if not piece:
                    to.finish()
                    return
                await to.send(piece)

        await asyncio.gather(enter(), leave())


@asynccontextmanager
async def delay_line(port: int, seconds: float) -> AsyncIterator[DelayLine]:
    """A line to ``port`` on this machine, ``seconds`` long each way."""
    line = DelayLine(port, seconds)
    async with service(line.carry) as running:
        line.port = running.port
        yield line
