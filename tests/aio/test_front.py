"""A front names the service of a local connection, and what it has read belongs to the stream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import SimpleNamespace
from typing import Any

from kdispatch.client import LocalListener
from kdispatch.local.front import HandOver
from kdispatch.running_log import SILENT
from tests.aio.twin import SERVICE, Program, Twin, until
from tests.net.tcp import Tcp


async def test_a_front_that_reads_first(pair: Twin) -> None:
    """A front may read a line to learn the service; the bytes behind the line are the first ones of the stream."""
    asked: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def read(sock: socket.socket, hand_over: HandOver) -> None:
        read = b""
        while b"\n" not in read:
            read += await asyncio.get_running_loop().sock_recv(sock, 100)
        name, _, early = read.partition(b"\n")
        hand_over(sock, name.decode(), early)

    def front(sock: socket.socket, hand_over: HandOver) -> None:
        task = asyncio.create_task(read(sock, hand_over))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def create_connection(service: str, protocol: asyncio.BaseProtocol, _host: str | None) -> object:
        asked.append(service)
        return pair.client.open(SERVICE, protocol)

    client: Any = SimpleNamespace(driver=pair.client, log=SILENT, create_connection=create_connection)
    listener = LocalListener(client, front)
    await listener.listen("127.0.0.1", 0)
    listener.serve()
    with contextlib.closing(listener):
        async with await Tcp.connect(listener.port) as tcp:
            await tcp.send(b"ann/")
            await asyncio.sleep(0.01)
            await tcp.send(b"web\nhello")
            await until(lambda: len(pair.served) == 1)
            served: Program = pair.served[0]
            await served.has(5)
            await tcp.send(b" again")
            await served.has(11)
            served.transport.write(b"answer")
            assert await tcp.receive_exactly(6) == b"answer"
    assert asked == ["ann/web"] and served.received == b"hello again"
    served.transport.close()
    await until(lambda: not pair.client.pipes)
