"""A reader that stops delays only itself, and costs little memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Final

import pytest

from tests.net.harness import KIB, MIB, Network, Process, Relay, sizes
from tests.net.tcp import Tcp, service

pytestmark = pytest.mark.slow

_OFFERED: Final = 1000 * 1000 * 1000  # bytes for the reader that stopped
_BLOCK: Final = bytes(64 * KIB)
_ROUNDS: Final = 3
_STUCK: Final = 0.5  # seconds in which a transfer to a stopped reader fills all buffers
_DOWN, _UP, _STOPPED = b"D", b"U", b"S"  # what a client requests from the service


@dataclass(frozen=True)
class _Size:
    """``measured`` bytes give a rate; the other two say how strictly it is checked."""

    measured: int
    memory: int
    rate: float


_SIZES = sizes(_Size(24 * MIB, memory=10, rate=0.08), _Size(256 * MIB, memory=1, rate=0.8))


async def _serve(tcp: Tcp) -> None:
    match await tcp.receive_exactly(1):
        case b"D":
            await tcp.send_forever(_BLOCK, _OFFERED)
        case b"U":
            received, _ = await tcp.digest()
            await tcp.send(received.to_bytes(8, "big"))
        case _:
            await asyncio.Event().wait()


async def _rate(port: int, *, download: bool, size: int) -> float:
    """Bytes a second of one stream that moves."""
    async with asyncio.timeout(60), await Tcp.connect(port) as tcp:
        await tcp.send(_DOWN if download else _UP)
        began = time.monotonic()
        if download:
            await tcp.receive_exactly(size)
        else:
            await tcp.send_forever(_BLOCK, size)
            tcp.finish()
            assert int.from_bytes(await tcp.receive_all(), "big") == size
        return size / (time.monotonic() - began)


async def _beside(port: int, *, stopped: bool, download: bool, size: int, watched: list[Process]) -> tuple[float, ...]:
    """The rate of a stream whose neighbour has stopped reading, or moves; with the RSS of the processes."""
    async with await Tcp.connect(port) as neighbour:
        await neighbour.send(_DOWN if download else _STOPPED if stopped else _UP)
        working: list[asyncio.Task[object]] = []
        if not download:
            working.append(asyncio.create_task(neighbour.send_forever(_BLOCK, _OFFERED)))
        if not stopped:
            working.append(asyncio.create_task(neighbour.digest()))
        try:
            await asyncio.sleep(_STUCK)
            rate = await _rate(port, download=download, size=size)
            return rate, *(process.usage.rss for process in watched)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            neighbour.reset()


@pytest.mark.parametrize("download", [True, False], ids=["download", "upload"])
@pytest.mark.parametrize("size", _SIZES)
async def test_stopped_reader_harms_nobody(network: Network, own_relay: Relay, *, download: bool, size: _Size) -> None:
    """A stream beside one with a stopped reader is as fast as beside a moving one, and memory stays small."""
    name = await network.service()
    async with service(_serve) as running:
        host = await network.host(name, running.port)
        client, port = await network.connect(name)
        watched = [own_relay.running, host, client]
        _, *before = await _beside(port, stopped=False, download=download, size=size.measured // 4, watched=watched)
        rates: dict[bool, list[float]] = {True: [], False: []}
        growths: list[list[float]] = []
        for _ in range(_ROUNDS):
            for stopped in (True, False):
                rate, *rss = await _beside(
                    port, stopped=stopped, download=download, size=size.measured, watched=watched
                )
                rates[stopped].append(rate)
                if stopped:
                    growths.append([now - start for now, start in zip(rss, before, strict=True)])
    relay, host_grew, client_grew = (max(column) for column in zip(*growths, strict=True))
    beside_stopped, beside_moving = (statistics.median(rates[stopped]) for stopped in (True, False))
    print(f"growth of relay, host, client, MiB: {relay / MIB:.1f} {host_grew / MIB:.1f} {client_grew / MIB:.1f}")
    print(f"rate beside a stopped one {beside_stopped / 1e6:.0f} MB/s, beside a moving one {beside_moving / 1e6:.0f}")
    assert relay < size.memory * 32 * MIB
    assert max(host_grew, client_grew) < size.memory * 64 * MIB
    assert beside_stopped >= size.rate * beside_moving


async def test_stopped_reader_goes_on(network: Network) -> None:
    """A reader that stopped for a while gets everything that was sent to it once it reads again."""
    name = await network.service()
    async with service(_serve) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await tcp.send(_DOWN)
            for _ in range(3):
                await asyncio.sleep(_STUCK)
                await asyncio.wait_for(tcp.receive_exactly(20 * MIB), 20)
