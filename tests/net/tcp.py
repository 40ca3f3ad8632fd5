"""TCP connections and services of the tests: plain sockets, so that the test decides who reads, stops or resets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

from kdispatch.machine.operating_system import HERE

__all__ = ["Service", "Tcp", "banner", "digest", "echo", "service", "silent", "sink", "source"]

_CHUNK: Final = 64 * 1024


class Tcp:
    """One end of a connection. Leaving its block closes it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int = 0) -> Self:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        tcp = cls(sock)
        try:
            await tcp._loop.sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            tcp.close()
            raise
        return tcp

    async def send(self, data: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def send_forever(self, block: bytes, most: int = 1 << 62) -> int:
        """Send ``block`` again and again, up to ``most`` bytes in total."""
        sent = 0
        while sent < most:
            await self.send(block[: most - sent])
            sent += min(len(block), most - sent)
        return sent

    async def receive(self, most: int = _CHUNK) -> bytes:
        """What has arrived, at least a byte; empty at the end."""
        return await self._loop.sock_recv(self.sock, most)

    async def receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        async for chunk in self.chunks(size):
            data += chunk
        assert len(data) == size, f"the connection ended after {len(data)} of {size} bytes"
        return bytes(data)

    async def receive_all(self) -> bytes:
        data = bytearray()
        async for chunk in self.chunks():
            data += chunk
        return bytes(data)

    async def chunks(self, most: int = 1 << 62) -> AsyncIterator[memoryview]:
        """What arrives, until the end or until ``most`` bytes came. Each view is valid until the next one."""
        buffer = memoryview(bytearray(_CHUNK))
        while most and (count := await self._loop.sock_recv_into(self.sock, buffer[: min(most, _CHUNK)])):
            most -= count
            yield buffer[:count]

    async def digest(self, most: int = 1 << 62) -> tuple[int, bytes]:
        """Read to the end, or this many bytes; returns their number and SHA-256."""
        size, hashed = 0, hashlib.sha256()
        async for chunk in self.chunks(most):
            size += len(chunk)
            hashed.update(chunk)
        return size, hashed.digest()

    def finish(self) -> None:
        """End this direction."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            if HERE.waits_for_sockets:
                # After a close during a read, the loop would watch a number that other descriptors will get.
                self._loop.remove_reader(self.sock)
                self._loop.remove_writer(self.sock)
            self.sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Service:
    """A running service: its port, and how many connections it has, and has had."""

    port: int
    open: int = 0
    accepted: int = 0


def _accept(
    loop: asyncio.AbstractEventLoop, listener: socket.socket, take: Callable[[socket.socket], None]
) -> Callable[[], object]:
    """Call ``take`` with each connection; returns what stops that."""

    def accept() -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            take(listener.accept()[0])

    async def accept_all() -> None:
        while True:
            take((await loop.sock_accept(listener))[0])

    if not HERE.waits_for_sockets:
        return loop.create_task(accept_all()).cancel
    # Not sock_accept: if that is cancelled, a connection that it just accepted is lost.
    loop.add_reader(listener, accept)
    return partial(loop.remove_reader, listener)


@asynccontextmanager
async def service(handle: Callable[[Tcp], Awaitable[None]], *, port: int = 0) -> AsyncIterator[Service]:
    """Run ``handle`` for each connection, and close what it leaves open. A broken connection is not its failure."""
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    listener.setblocking(False)
    running = Service(listener.getsockname()[1])
    tasks: dict[asyncio.Task[None], Tcp] = {}
    failures: list[BaseException] = []

    async def one(tcp: Tcp) -> None:
        running.open += 1
        try:
            async with tcp:
                with contextlib.suppress(ConnectionError):
                    await handle(tcp)
        except Exception as error:  # noqa: BLE001 - raised when the service ends
            failures.append(error)
        finally:
            running.open -= 1

    def take(sock: socket.socket) -> None:
        sock.setblocking(False)
        running.accepted += 1
        tcp = Tcp(sock)
        task = loop.create_task(one(tcp))
        tasks[task] = tcp
        task.add_done_callback(tasks.pop)

    stop = _accept(loop, listener, take)
    try:
        yield running
    finally:
        stop()
        listener.close()
        left = dict(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for tcp in left.values():  # of a task that never began
            tcp.close()
    if failures:
        raise failures[0]


async def echo(tcp: Tcp) -> None:
    """Send everything back."""
    async for chunk in tcp.chunks():
        await tcp.send(bytes(chunk))


async def sink(tcp: Tcp) -> None:
    """Read to the end."""
    async for _ in tcp.chunks():
        pass


async def digest(tcp: Tcp) -> None:
    """Read to the end, then answer with the SHA-256."""
    await tcp.send((await tcp.digest())[1])


async def silent(tcp: Tcp) -> None:
    """Read nothing, and send nothing."""
    await asyncio.Event().wait()


def source(block: bytes, most: int = 1 << 62) -> Callable[[Tcp], Awaitable[None]]:
    """Send ``most`` bytes, whatever arrives."""

    async def handle(tcp: Tcp) -> None:
        await tcp.send_forever(block, most)

    return handle


async def banner(tcp: Tcp) -> None:
    """Send first, then echo."""
    await tcp.send(b"220 ready\r\n")
    await echo(tcp)
