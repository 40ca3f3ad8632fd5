"""Many streams at once over one session on each side, which leave nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import time
from pathlib import Path
from typing import Final

import pytest

from tests.net.harness import KIB, MIB, Network, Relay, counts, counts_at_rest, eventually, sizes
from tests.net.loop_stack import running_stack
from tests.net.tcp import Tcp, service

pytestmark = pytest.mark.slow

_POOL: Final = memoryview(random.Random(1).randbytes(8 * MIB))
_REQUEST: Final = struct.Struct("!III")  # where in the pool the two directions begin, and their size
_GREETING: Final = b"!"
_ENOUGH: Final = 100  # seconds; a stalled stream fails the test


def _piece(begin: int, size: int) -> memoryview:
    return _POOL[begin : begin + size]


def _keep_small(tcp: Tcp) -> None:
    """Hold little in the kernel: 2 GB in socket buffers bring all TCP of the machine under memory pressure.

    Then the sessions' own sockets become slow (29-115 MB/s, measured with `nstat`: zero windows, pruned queues).
    """
    tcp.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)


async def _serve(tcp: Tcp) -> None:
    """Greet, then send and receive at once; at the end send the digest of what arrived."""
    _keep_small(tcp)
    await tcp.send(_GREETING)
    _, down, size = _REQUEST.unpack(await tcp.receive_exactly(_REQUEST.size))
    (_, digest), _ = await asyncio.gather(tcp.digest(), tcp.send(_piece(down, size)))
    await tcp.send(digest)


async def _exchange(port: int, size: int, seed: int, all_there: asyncio.Barrier) -> None:
    """Send and receive ``size`` bytes at once, and check both directions by their digests."""
    random_ = random.Random(seed)
    up, down = random_.randrange(len(_POOL) - size), random_.randrange(len(_POOL) - size)
    async with await Tcp.connect(port) as tcp:
        _keep_small(tcp)
        assert await tcp.receive_exactly(1) == _GREETING
        await all_there.wait()

        async def upload() -> None:
            await tcp.send(_REQUEST.pack(up, down, size))
            await tcp.send(_piece(up, size))
            tcp.finish()

        received, _ = await asyncio.gather(tcp.digest(size), upload())
        assert received == (size, hashlib.sha256(_piece(down, size)).digest())
        assert await tcp.receive_all() == hashlib.sha256(_piece(up, size)).digest()


async def _exchange_all(port: int, count: int, size: int) -> float:
    """Run all at once; returns the seconds they took."""
    began = time.monotonic()
    all_there = asyncio.Barrier(count)
    async with asyncio.timeout(_ENOUGH), asyncio.TaskGroup() as group:
        for seed in range(count):
            group.create_task(_exchange(port, size, seed, all_there))
    return time.monotonic() - began


@pytest.mark.parametrize("load", sizes((100, 256 * KIB), (1000, MIB)))
async def test_processes_carry_many_streams(network: Network, own_relay: Relay, load: tuple[int, int]) -> None:
    """Every stream's bytes arrive complete both ways, and all three processes free their descriptors and threads."""
    count, size = load
    name = await network.service()
    async with service(_serve) as running:
        host = await network.host(name, running.port)
        client, port = await network.connect(name)
        processes = [own_relay.running, host, client]
        await _exchange_all(port, 3, KIB)
        before = await counts_at_rest(processes)
        seconds = await _exchange_all(port, count, size)
        await eventually(lambda: counts(processes), before)
    print(f"{count} streams of {size >> 10} KiB each way: {2 * count * size / seconds / 1e6:.0f} MB/s, {seconds:.1f} s")
    print("RSS afterwards, MiB: relay, host, client", [process.usage.rss >> 20 for process in processes])


@pytest.mark.parametrize("load", sizes((100, 64 * KIB), (1000, 256 * KIB)))
async def test_tables_are_empty_afterwards(tmp_path: Path, load: tuple[int, int]) -> None:
    """Finished streams leave nothing: no task, no table entry, no credit, no byte in a queue."""
    count, size = load
    async with service(_serve) as running, running_stack(tmp_path) as stack:
        await stack.host(running.port)
        _, port = await stack.client()
        await _exchange_all(port, 3, KIB)
        await eventually(lambda: stack.held()["streams"], 0)
        await asyncio.sleep(0.1)
        before, tasks = stack.held(), len(asyncio.all_tasks())
        assert not any(before.values())
        await _exchange_all(port, count, size)
        await eventually(stack.held, before)
        await eventually(lambda: len(asyncio.all_tasks()), tasks)
