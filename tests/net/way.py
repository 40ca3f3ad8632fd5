"""A path to a port that a test can block, cut, and restore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.net.tcp import Tcp, service

__all__ = ["Way", "way"]


class Way:
    """Connections to another port, made at ``port``."""

    def __init__(self, to: int) -> None:
        self.port = 0
        self._to = to
        self._cut = asyncio.Event()
        self._answering = asyncio.Event()
        self._answering.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold_answers(self) -> None:
        """From now on nothing comes back; what is sent still arrives there."""
        self._answering.clear()

    def cut(self) -> None:
        """Close all connections, and each new one at once."""
        self._cut.set()

    def mend(self) -> None:
        """Restore the initial state, for new connections."""
        self._cut.clear()
        self._answering.set()

    async def carry(self, tcp: Tcp) -> None:
        if self._cut.is_set():
            return
        async with await Tcp.connect(self._to) as other:
            always = asyncio.Event()
            always.set()
            work = (_carry(tcp, other, always), _carry(other, tcp, self._answering), self._cut.wait())
            tasks = [asyncio.ensure_future(one) for one in work]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(from_: Tcp, to: Tcp, may: asyncio.Event) -> None:
    while piece := await from_.receive():
        await may.wait()
        await to.send(piece)


@asynccontextmanager
async def way(to: int) -> AsyncIterator[Way]:
    """A path to a port of this machine."""
    made = Way(to)
    async with service(made.carry) as running:
        made.port = running.port
        yield made
