"""A connection to a service, without kdispatch, that damages the answers, to prove that the transfers notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from tests.faults.transfer import Transfers
from tests.net.harness import KIB
from tests.net.tcp import Tcp, service

__all__ = ["AT", "Ends", "Spoil", "Stands", "damaged", "fails", "spoiled"]

#: Bytes before the damage.
AT: Final = 100 * KIB
#: Changes a piece of the answer, given the bytes before it; an exception ends or stalls the connection instead.
Spoil = Callable[[int, bytes], bytes]


class Ends(Exception):
    """The connection ends cleanly here."""


class Stands(Exception):
    """No byte passes from here on."""


def damaged(damage: Callable[[bytes], bytes]) -> Spoil:
    """Change the piece that contains byte ``AT``."""
    return lambda before, chunk: damage(chunk) if before <= AT < before + len(chunk) else chunk


def fails(error: Exception, at: int = AT) -> Spoil:
    """Raise ``error`` from byte ``at`` on."""

    def spoil(before: int, chunk: bytes) -> bytes:
        if before >= at:
            raise error
        return chunk

    return spoil


@asynccontextmanager
async def spoiled(through: Transfers, spoil: Spoil) -> AsyncIterator[int]:
    """A port that leads to the service and damages the answers."""

    async def there(tcp: Tcp, far: Tcp) -> None:
        async for chunk in tcp.chunks():
            await far.send(chunk)
        far.finish()

    async def back(tcp: Tcp, far: Tcp) -> None:
        before = 0
        try:
            async for chunk in far.chunks():
                await tcp.send(spoil(before, bytes(chunk)))
                before += len(chunk)
        except Stands:
            await asyncio.sleep(10)
        except ConnectionResetError:
            tcp.reset()
            raise
        except Ends:
            pass
        tcp.finish()

    async def carry(tcp: Tcp) -> None:
        async with await Tcp.connect(through.port) as far:
            ways = [asyncio.create_task(way(tcp, far)) for way in (there, back)]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async with service(carry) as running:
        yield running.port
