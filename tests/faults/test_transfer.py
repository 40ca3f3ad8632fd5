"""The transfers see what they are there to see: each kind of damage is planted once, on a way without kdispatch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from tests.faults.transfer import NotOpenedError, TransferError, Transfers, transfers
from tests.net.harness import KIB
from tests.net.tcp import Tcp, service

_SIZE: Final = 200 * KIB
_AT: Final = 100 * KIB  # where the damage is
_PATIENCE: Final = 0.5

#: What becomes of the bytes that come back, given how many there were before; an error is what the line does instead.
Spoil = Callable[[int, bytes], bytes]


class _Ends(Exception):
    """The line ends cleanly here."""


class _Stands(Exception):
    """Nothing passes from here on."""


def _at(damage: Callable[[bytes], bytes]) -> Spoil:
    return lambda before, chunk: damage(chunk) if before <= _AT < before + len(chunk) else chunk


def _raise(error: Exception, at: int = _AT) -> Spoil:
    def spoil(before: int, chunk: bytes) -> bytes:
        if before >= at:
            raise error
        return chunk

    return spoil


@asynccontextmanager
async def _way(through: Transfers, spoil: Spoil) -> AsyncIterator[int]:
    """A port that leads to the service, and spoils what comes back."""

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
        except _Stands:
            await asyncio.sleep(10)
        except ConnectionResetError:
            tcp.reset()
            raise
        except _Ends:
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


async def test_what_is_whole_passes() -> None:
    """Many exchanges at once, of equal or of different sizes both ways, and their bytes are counted."""
    async with transfers(1, _PATIENCE) as through:
        plans = [(_SIZE, _SIZE), (0, _SIZE), (_SIZE, 0), (5_000_000, 1), (0, 0)]
        half = asyncio.create_task(through.reached(4_000_000))
        await asyncio.gather(*(through.exchange(through.port, up, down) for up, down in plans))
        await half
        assert through.moved == sum(map(sum, plans))
        assert not through.running
        assert through.longest < _PATIENCE


async def test_rates_are_kept() -> None:
    """A rate slows the senders, a read rate the user's reading, and neither counts as a pause or a stall."""
    async with transfers(1, _PATIENCE) as through:
        began = asyncio.get_running_loop().time()
        slow = await through.exchange(through.port, _SIZE, rate=4 * _SIZE)
        assert asyncio.get_running_loop().time() - began > 0.2
        assert slow.down.longest < 0.15
        read = await through.exchange(through.port, 0, _SIZE, read_rate=4 * _SIZE)
        assert asyncio.get_running_loop().time() - began > 0.4
        assert read.down.longest < 0.15


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_at(lambda chunk: bytes([chunk[0] ^ 1]) + chunk[1:]), "down differs from byte"),
        (_at(lambda chunk: chunk[1:]), "down differs from byte"),
        (_at(lambda chunk: chunk + chunk), "down differs from byte"),
        (_raise(_Ends()), "down ended cleanly after"),
        (_raise(ConnectionResetError()), r"down broke \(ConnectionResetError\)"),
        (_raise(_Stands()), "down stands still for"),
    ],
    ids=["changed", "missing", "twice", "short", "reset", "still"],
)
async def test_what_is_damaged_is_told(spoil: Spoil, told: str) -> None:
    """A changed, missing or repeated byte, an early end, a reset and a stall each fail the exchange, by name."""
    async with transfers(1, _PATIENCE) as through, _way(through, spoil) as port:
        with pytest.raises(TransferError, match=told):
            await through.exchange(port, KIB, _SIZE)


async def test_a_refused_open_is_a_failure_of_its_own() -> None:
    """A connection that is reset before a byte came through, or not taken at all, was not opened."""
    async with transfers(1, _PATIENCE) as through:
        async with _way(through, _raise(ConnectionResetError(), at=0)) as port:
            with pytest.raises(NotOpenedError):
                await through.exchange(port, 0, _SIZE)
        with pytest.raises(NotOpenedError):
            await through.exchange(port, _SIZE)
