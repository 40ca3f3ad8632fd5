"""Raw requests to a server in front of a relay, and an upstream that records what reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.edges.servers import Edge
from tests.net.tcp import Tcp, service

__all__ = ["UPGRADE", "Recorder", "Reply", "ask", "break_off", "connected", "head", "recorder"]

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


#: The headers of an agent's request for a tunnel.
UPGRADE: Final = (
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: kdispatch.1",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@dataclass(frozen=True)
class Reply:
    """The status (0 without an answer), all bytes of the answer as text, and the seconds until its end."""

    status: int
    text: str
    seconds: float

    @property
    def from_relay(self) -> bool:
        """Whether the relay itself gave this answer."""
        return "application/problem+json" in self.text


def head(method: str, path: str, *headers: str) -> bytes:
    """Return a request's head; it asks the server to close the connection after the answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


async def ask(edge: Edge, *pieces: bytes, source: str = "127.0.0.1") -> Reply:
    """Send these pieces from the address ``source``, and read the answer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    received = bytearray()
    async with asyncio.timeout(20), connected(edge, source) as (reader, writer):
        # The server may close the connection while a refused request is still being sent.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.writelines(pieces)
            await writer.drain()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while not _whole(received) and (data := await reader.read(64 * 1024)):
                received += data
    words = bytes(received[:16]).split(b" ")
    status = int(words[1]) if len(words) > 1 else 0
    return Reply(status, received.decode("latin-1"), loop.time() - began)


async def break_off(edge: Edge, data: bytes) -> None:
    """Send these bytes, and close without waiting for an answer."""
    async with connected(edge) as (_, writer):
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(
    edge: Edge, source: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Hold a TLS connection from this address for the duration of the block."""
    tls = ssl.create_default_context(cafile=str(edge.certificates))
    name = edge.url.removeprefix("https://").partition(":")[0]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", edge.port, ssl=tls, server_hostname=name, local_addr=(source, 0)
    )
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def _whole(received: bytes | bytearray) -> bool:
    """Whether an answer with a Content-Length is complete."""
    found, end, body = bytes(received).partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", found, re.IGNORECASE)
    return bool(end) and length is not None and len(body) >= int(length[1])


@dataclass
class Recorder:
    """The heads of requests without the health checks, and the size of the longest body in bytes."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    most_body: int = 0

    def headers(self, name: str) -> list[str]:
        """Return the last request's values of this header, in order."""
        lines = [line.partition(":") for line in self.heads[-1].split("\r\n")[1:]]
        return [value.strip() for found, _, value in lines if found.lower() == name.lower()]

    async def serve(self, tcp: Tcp) -> None:
        """Read a request with its body, and answer 200."""
        received = bytearray()
        while b"\r\n\r\n" not in received:
            received += (data := await tcp.receive())
            if not data:
                return
        found, _, body = received.partition(b"\r\n\r\n")
        if b" /healthz " in found:
            await tcp.send(_OK)
            return
        self.heads.append(found.decode("latin-1"))
        length, size = int("".join(self.headers("Content-Length")) or 0), len(body)
        while size < length and (data := await tcp.receive()):
            size += len(data)
        self.most_body = max(self.most_body, size)
        if size >= length:
            await tcp.send(_OK)


@asynccontextmanager
async def recorder() -> AsyncIterator[Recorder]:
    """Run a recorder in the relay's place for the duration of the block."""
    made = Recorder()
    async with service(made.serve) as running:
        made.port = running.port
        yield made
