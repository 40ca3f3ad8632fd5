"""A relay on Linux and agents under Wine: what passes through the tunnel, and what outlives its failures.

Some rules are those of tests/net, whose tests run here with agents under Wine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
from typing import Final

import pytest

from tests.net.harness import MIB, Network, Relay, sizes
from tests.net.tcp import Tcp, digest, echo, service, source
from tests.net.test_half_close import (
    test_answer_follows_the_clients_end,
    test_client_speaks_after_the_services_end,
    test_end_at_once_is_an_end,
    test_service_speaks_first,
    test_slow_reader_gets_everything_after_the_end,
)
from tests.net.test_reconnect import (
    test_a_killed_agent_is_known_by_its_successor,
    test_agents_wait_for_their_relay,
    test_connections_go_on,
    test_nobody_comes_back,
)
from tests.windows.running import WindowsNetwork

__all__ = [
    "test_a_killed_agent_is_known_by_its_successor",
    "test_agents_wait_for_their_relay",
    "test_answer_follows_the_clients_end",
    "test_client_speaks_after_the_services_end",
    "test_connections_go_on",
    "test_end_at_once_is_an_end",
    "test_nobody_comes_back",
    "test_service_speaks_first",
    "test_slow_reader_gets_everything_after_the_end",
]

pytestmark = pytest.mark.slow

_SIZE: Final = 200 * 1000 * 1000  #: bytes in each direction
_BLOCK: Final = random.Random(7).randbytes(MIB)
_ENOUGH: Final = 100.0  # seconds; a transfer that stalls fails its test


def _sha256(size: int) -> bytes:
    """The digest of so many bytes of the block, again and again."""
    whole, rest = divmod(size, len(_BLOCK))
    hashed = hashlib.sha256()
    for _ in range(whole):
        hashed.update(_BLOCK)
    hashed.update(_BLOCK[:rest])
    return hashed.digest()


async def test_a_bulk_each_way(network: WindowsNetwork) -> None:
    """200 MB arrive unchanged in each direction."""
    name = await network.service()
    async with service(digest) as up, service(source(_BLOCK, _SIZE)) as down, asyncio.timeout(_ENOUGH):
        host = await network.host(name, up.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await tcp.send_forever(_BLOCK, _SIZE)
            tcp.finish()
            assert await tcp.receive_all() == _sha256(_SIZE)
        host.stop(signal.SIGKILL)
        await network.host(name, down.port)
        async with await Tcp.connect(port) as tcp:
            assert await tcp.digest() == (_SIZE, _sha256(_SIZE))


async def test_many_at_once(network: WindowsNetwork) -> None:
    """200 connections at the same time each get back exactly what they sent."""
    count, size = 200, 32 * 1024
    name = await network.service()
    all_there = asyncio.Barrier(count)

    async def one(port: int, seed: int) -> bool:
        data = random.Random(seed).randbytes(size)
        async with await Tcp.connect(port) as tcp:
            await tcp.send(data[:1])
            begun = await tcp.receive_exactly(1)
            await all_there.wait()
            sending = asyncio.create_task(tcp.send(data[1:]))
            rest = await tcp.receive_exactly(size - 1)
            await sending
            return begun + rest == data

    async with service(echo) as running, asyncio.timeout(_ENOUGH):
        await network.host(name, running.port)
        _, port = await network.connect(name)
        assert await asyncio.gather(*(one(port, seed) for seed in range(count))) == [True] * count


async def test_a_relay_killed_five_times(network: WindowsNetwork, own_relay: Relay) -> None:
    """A transfer each way goes on unchanged although its relay is killed five times."""
    name = await network.service()
    arrived = 0

    async def both(tcp: Tcp) -> None:
        """Send everything, and answer at the end with the digest of what came."""
        (_, got), _ = await asyncio.gather(tcp.digest(_SIZE), tcp.send_forever(_BLOCK, _SIZE))
        await tcp.send(got)

    async def read(tcp: Tcp) -> bytes:
        nonlocal arrived
        hashed = hashlib.sha256()
        async for chunk in tcp.chunks(_SIZE):
            arrived += len(chunk)
            hashed.update(chunk)
        return hashed.digest()

    async with service(both) as running, asyncio.timeout(_ENOUGH):
        await network.host(name, running.port)
        client, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            reading = asyncio.create_task(read(tcp))
            sending = asyncio.create_task(tcp.send_forever(_BLOCK, _SIZE))
            for kill in range(1, 6):
                while arrived < kill * _SIZE // 7:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.005)
                own_relay.stop(signal.SIGKILL)
                await own_relay.start()
            assert arrived < _SIZE, "the transfer was over before the last kill"
            assert await reading == _sha256(_SIZE)
            await sending
            assert await tcp.receive_exactly(32) == _sha256(_SIZE)
    assert client.err.count("The session with the relay is back") == 5


@pytest.mark.parametrize("seconds", sizes(12.0, 60.0))
async def test_moves(network: WindowsNetwork, seconds: float) -> None:
    """A transfer each way goes on unchanged while both agents move to new sessions again and again."""
    rotate = seconds / 12
    name = await network.service()
    block = _BLOCK[: 64 * 1024]

    async def send(tcp: Tcp) -> tuple[int, bytes]:
        """Send one block after the other for the time, and then the end; returns what was sent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        size, hashed = 0, hashlib.sha256()
        while loop.time() < deadline:
            await tcp.send(block)
            size += len(block)
            hashed.update(block)
            await asyncio.sleep(0.02)
        tcp.finish()
        return size, hashed.digest()

    there = asyncio.get_running_loop().create_future()

    async def both(tcp: Tcp) -> None:
        there.set_result(await asyncio.gather(send(tcp), tcp.digest()))

    async with service(both) as running, asyncio.timeout(seconds + 60):
        await network.host(name, running.port, "--rotate", str(rotate))
        _, port = await network.connect(name, "--rotate", str(rotate))
        async with await Tcp.connect(port) as tcp:
            sent, got = await asyncio.gather(send(tcp), tcp.digest())
        assert (got, sent) == tuple(await there)
        told = json.loads((await network.run("status", "--json")).out)
    ages = [agent["connected_for"] for agent in told["agents"]]
    assert len(ages) == 2 and max(ages) < seconds / 2, told


@pytest.mark.parametrize("side", ["host", "client"])
async def test_beside_linux(network: WindowsNetwork, side: str) -> None:
    """An agent under Wine works with one on Linux at the other end: 20 MB each way on one connection."""
    linux = Network(network.folder / "agents of linux", network.url, network.environment["KDISPATCH_TOKEN"])
    linux.folder.mkdir()
    name = await network.service()
    size = 20 * MIB

    async def both(tcp: Tcp) -> None:
        (_, got), _ = await asyncio.gather(tcp.digest(size), tcp.send_forever(_BLOCK, size))
        await tcp.send(got)

    try:
        async with service(both) as running, asyncio.timeout(_ENOUGH):
            await (network if side == "host" else linux).host(name, running.port)
            _, port = await (linux if side == "host" else network).connect(name)
            async with await Tcp.connect(port) as tcp:
                sending = asyncio.create_task(tcp.send_forever(_BLOCK, size))
                assert await tcp.digest(size) == (size, _sha256(size))
                await sending
                assert await tcp.receive_exactly(32) == _sha256(size)
    finally:
        linux.stop()
