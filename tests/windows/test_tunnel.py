"""A relay on Linux and agents under Wine: what passes through the tunnel, and what outlives its failures.

Some rules are those of tests/net, whose tests run here with agents under Wine.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
from typing import Final

import pytest

from tests.net.harness import MIB, Relay
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
