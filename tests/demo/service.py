"""A TCP service to reach through a tunnel: python -m tests.demo.service --name A

It prints the port it listens on. The first line of a connection is a command:

who         answers the service's name
echo        sends back what comes
sink        reads to the end, then answers the number of bytes and their SHA-256
source N    sends the SHA-256 of N random bytes in a line, then the bytes
late KEY    says hello and ends its own direction, then reads to the end and keeps the SHA-256 as KEY
recall KEY  answers the digest kept as KEY
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Final

#: Bytes of one read or write: far above what a tunnel moves at once.
CHUNK: Final = 1024 * 1024


class Service:
    """The state of one process, for any number of connections."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: dict[str, str] = {}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await self._serve((await reader.readline()).decode().split(), reader, writer)
            writer.close()
            await writer.wait_closed()

    async def _serve(self, command: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match command:
            case ["who"]:
                writer.write(f"{self._name}\n".encode())
            case ["echo"]:
                async for data in chunks(reader):
                    writer.write(data)
                    await writer.drain()
            case ["sink"]:
                received = [data async for data in chunks(reader)]
                # The count goes first, so that a client that measures the time need not wait for the digest.
                writer.write(f"{sum(map(len, received))}\n".encode())
                await writer.drain()
                writer.write(f"{sha256(*received)}\n".encode())
            case ["source", size]:
                data = os.urandom(int(size))
                writer.write(f"{sha256(data)}\n".encode())
                await send(writer, data)
            case ["late", key]:
                writer.write(b"hello\n")
                writer.write_eof()
                self._kept[key] = sha256(*[data async for data in chunks(reader)])
            case ["recall", key]:
                writer.write(f"{self._kept.get(key, '-')}\n".encode())
            case _:
                writer.write(b"unknown\n")


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the received pieces up to the end."""
    while data := await reader.read(CHUNK):
        yield data


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write ``data`` in pieces, and wait while the other side is slower."""
    for start in range(0, len(data), CHUNK):
        writer.write(data[start : start + CHUNK])
        await writer.drain()


def sha256(*parts: bytes) -> str:
    """The digest of all parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


async def main(name: str) -> None:
    server = await asyncio.start_server(Service(name), "127.0.0.1", 0, limit=CHUNK, backlog=512)
    print(f"service {name} listens on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="A")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().name))
