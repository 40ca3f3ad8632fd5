"""Writing to a socket next to its transport: nothing is lost, repeated or swapped, whatever the kernel accepts."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kdispatch_protocol.session.aio.writer import SocketWriter
from kdispatch_protocol.wire.frames import Buffer
from tests.aio.twin import until
from tests.net.harness import needs

pytestmark = pytest.mark.skipif(not hasattr(os, "writev"), reason="without writev there is the transport's way only")


class _End(asyncio.Protocol):
    """A transport's protocol, which records what it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.full = False
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@asynccontextmanager
async def _connected(*, small: bool = False) -> AsyncIterator[tuple[asyncio.Transport, _End, socket.socket]]:
    """A transport and the socket at its other end; ``small``: the kernel holds hardly anything."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        there = socket.socket()
        if small:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        there.setblocking(False)
        await loop.sock_connect(there, listener.getsockname())
        here, _ = listener.accept()
    if small:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    here.setblocking(False)
    transport, end = await loop.create_connection(_End, sock=here)
    transport.set_write_buffer_limits(high=1, low=0)
    with there:
        yield transport, end, there
        if not transport.is_closing():
            transport.abort()
        await end.lost


async def _read(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    read = bytearray()
    async with asyncio.timeout(10):
        while len(read) < count:
            piece = await loop.sock_recv(sock, 65_536)
            if not piece:
                break
            read += piece
    return bytes(read)


def _size(parts: list[Buffer]) -> int:
    return sum(map(len, parts))


def _message(chance: random.Random) -> list[Buffer]:
    """A few parts, or many small ones, of every kind of buffer, including empty ones."""
    sizes = chance.choice(([0, 2, 16, 100], [16, 70_000, 16], [1] * 40, [3000, 0, 5000], [131_072]))
    kinds = [bytes, bytearray, memoryview]
    return [chance.choice(kinds)(chance.randbytes(size)) for size in sizes]


@pytest.mark.parametrize("small", [False, True], ids=["roomy", "small"])
async def test_order_through_full_moments(small: bool) -> None:
    """Parts arrive in order and once: written at once, in part, or after what the transport holds."""
    chance = random.Random(11)
    async with _connected(small=small) as (transport, end, there):
        writer = SocketWriter(transport)
        sent = bytearray()
        ways = {True: 0, False: 0}
        reading = asyncio.create_task(_read(there, 1 << 30))
        for number in range(150):
            parts = _message(chance)
            memory = [bytearray(part) for part in parts]
            sent += b"".join(parts)
            waits = transport.get_write_buffer_size()
            ways[waits > 0] += 1
            writer.write(list(memory), _size(parts))
            for part in memory:
                part[:] = b"\xdb" * len(part)  # they may be reused
            if number % 10 == 0:  # through the transport in between
                transport.write(own := chance.randbytes(chance.choice((1, 5000))))
                sent += own
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            if end.full and chance.random() < 0.5:
                await until(lambda: not end.full)
        transport.close()
        assert await reading == bytes(sent)
        assert ways[False] > 10 and (ways[True] > 10 or not small)


async def test_a_free_socket_takes_all_at_once() -> None:
    """What the kernel accepts does not go through the transport, and has left before the loop's next turn."""
    async with _connected() as (transport, _, there):
        writer = SocketWriter(transport)
        parts: list[Buffer] = [b"head", memoryview(b"x" * 5000), b"tail"]
        writer.write(parts, _size(parts))
        assert transport.get_write_buffer_size() == 0
        assert there.recv(10_000) == b"".join(parts)


async def test_a_socket_that_takes_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the kernel stops, inside a part or between two, the rest follows."""
    taken: list[int] = []

    def writev(fd: int, parts: list[Buffer]) -> int:
        return os.write(fd, b"".join(parts)[: taken[-1]])

    parts: list[Buffer] = [b"ab" * 1000, b"", bytearray(b"cd" * 1000), memoryview(b"ef" * 1000)]
    whole = b"".join(parts)
    monkeypatch.setattr(os, "writev", writev)
    async with _connected() as (transport, _, there):
        writer = SocketWriter(transport)
        for count in (1, 1999, 2000, 2001, 3999, 4000, 4001, 5999, 6000):
            taken.append(count)
            writer.write(list(parts), 6000)
            assert await _read(there, 6000) == whole
            await until(lambda: not transport.get_write_buffer_size())


async def test_a_full_socket_keeps_what_it_is_given() -> None:
    """While the socket is full, all waits in the transport, which reports that at once, and again when it is empty."""
    async with _connected(small=True) as (transport, end, there):
        writer = SocketWriter(transport)
        sent = 0
        while not end.full:
            writer.write([b"x" * 60_000], 60_000)
            sent += 60_000
            await asyncio.sleep(0)
        waits = transport.get_write_buffer_size()
        writer.write([b"y", b"z" * 9], 10)
        assert transport.get_write_buffer_size() == waits + 10
        read = await _read(there, sent + 10)
        assert read == b"x" * sent + b"y" + b"z" * 9
        await until(lambda: not end.full)


async def test_a_peer_that_has_reset() -> None:
    """A write to a connection that was reset raises nothing; the transport ends, and later writes do nothing."""
    async with _connected() as (transport, end, there):
        writer = SocketWriter(transport)
        transport.pause_reading()  # so that the write meets the reset first
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.close()
        await asyncio.sleep(0.01)
        for _ in range(5):
            writer.write([b"x" * 3000, b"y" * 3000], 6000)
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            assert isinstance(await end.lost, ConnectionError | None)
        assert transport.is_closing()
        writer.write([b"late"], 4)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_closing_transport(how: str) -> None:
    """Nothing is written after a close, and never to a descriptor that may belong to another by now."""
    async with _connected() as (transport, end, there):
        writer = SocketWriter(transport)
        writer.write([b"before"], 6)
        getattr(transport, how)()
        writer.write([b"behind"], 6)
        await end.lost
        ours, other = socket.socketpair()  # the first of them has the number of the closed socket
        with ours, other:
            writer.write([b"another's"], 9)
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(1)
        assert await _read(there, 100) == b"before"


async def test_a_transport_that_was_lost_before() -> None:
    """A writer for a transport whose socket is already closed can be created, and does nothing."""
    async with _connected() as (transport, end, _):
        transport.abort()
        await end.lost
        writer = SocketWriter(transport)
        writer.write([b"x"], 1)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for the name "kd", and its key."""
    paths = tmp_path / "kd.pem", tmp_path / "kd.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=kd", "-addext", "subjectAltName=DNS:kd"]
    command += ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return paths


@needs("openssl")
async def test_over_tls(certificate: tuple[Path, Path]) -> None:
    """A TLS transport is written to in its own way: no byte goes to the socket unencrypted."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*certificate)
    client_side = ssl.create_default_context(cafile=certificate[0])
    chance = random.Random(3)
    ends: list[_End] = []

    def made() -> _End:
        ends.append(_End())
        return ends[-1]

    loop = asyncio.get_running_loop()
    server = await loop.create_server(made, "127.0.0.1", 0, ssl=server_side)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport, end = await loop.create_connection(_End, "127.0.0.1", port, ssl=client_side, server_hostname="kd")
        writer = SocketWriter(transport)
        sent = bytearray()
        for _ in range(40):
            parts = _message(chance)
            sent += b"".join(parts)
            writer.write(parts, _size(parts))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        await until(lambda: ends and len(ends[0].received) == len(sent))
        assert ends[0].received == sent
        assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        transport.close()
        await end.lost
        await ends[0].lost
