"""The transfers detect each kind of damage, on a connection without kdispatch."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import pytest

from tests.faults.spoiled import Ends, Spoil, Stands, damaged, fails, spoiled
from tests.faults.transfer import NotOpenedError, TransferError, transfers
from tests.net.harness import KIB
from tests.net.tcp import Tcp, service, sink

_SIZE: Final = 200 * KIB
_PATIENCE: Final = 0.5


async def test_what_is_whole_passes() -> None:
    """Many undamaged exchanges at once, of any sizes, succeed, and their bytes are counted."""
    async with transfers(1, _PATIENCE) as through:
        plans = [(_SIZE, _SIZE), (0, _SIZE), (_SIZE, 0), (5_000_000, 1), (0, 0)]
        half = asyncio.create_task(through.reached(4_000_000))
        await asyncio.gather(*(through.exchange(through.port, up, down) for up, down in plans))
        await half
        assert through.moved == sum(map(sum, plans))
        assert not through.running
        assert through.longest < _PATIENCE


async def test_rates_are_kept() -> None:
    """A rate slows the senders, a read rate the user's reads, and neither counts as a pause or a stall."""
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
        (damaged(lambda chunk: bytes([chunk[0] ^ 1]) + chunk[1:]), "down differs from byte"),
        (damaged(lambda chunk: chunk[1:]), "down differs from byte"),
        (damaged(lambda chunk: chunk + chunk), "down differs from byte"),
        (fails(Ends()), "down ended cleanly after"),
        (fails(ConnectionResetError()), r"down broke \(ConnectionResetError\)"),
        (fails(Stands()), "down stands still for"),
    ],
    ids=["changed", "missing", "twice", "short", "reset", "still"],
)
async def test_what_is_damaged_is_told(spoil: Spoil, told: str) -> None:
    """A changed, missing or repeated byte, an early end, a reset and a stall each fail with their own text."""
    async with transfers(1, _PATIENCE) as through, spoiled(through, spoil) as port:
        with pytest.raises(TransferError, match=told):
            await through.exchange(port, KIB, _SIZE)


async def test_a_refused_open_is_a_failure_of_its_own() -> None:
    """A connection that is refused, or reset before its first byte, raises NotOpenedError."""
    async with transfers(1, _PATIENCE) as through:
        async with spoiled(through, fails(ConnectionResetError(), at=0)) as port:
            with pytest.raises(NotOpenedError):
                await through.exchange(port, 0, _SIZE)
        with pytest.raises(NotOpenedError):
            await through.exchange(port, _SIZE)


async def test_abandoning_is_a_reset_for_the_service() -> None:
    """A user's reset must reach the service as a reset: a clean end in its place is a failure."""
    async with transfers(1, _PATIENCE) as through:
        await through.abandon(through.port, 0)
        await through.abandon(through.port, _SIZE)

        async def ends_politely(tcp: Tcp) -> None:
            async with await Tcp.connect(through.port) as far:
                await far.send(await tcp.receive())
                await tcp.send(await far.receive())
                with contextlib.suppress(ConnectionError):
                    await tcp.receive()
                far.finish()
                await sink(far)

        async with service(ends_politely) as line:
            with pytest.raises(TransferError, match="was abandoned, and the service saw no reset"):
                await through.abandon(line.port, 1)
        async with spoiled(through, damaged(lambda chunk: chunk[1:])) as port:
            with pytest.raises(TransferError, match="differs"):
                await through.abandon(port, _SIZE)
