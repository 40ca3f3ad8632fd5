"""The middlebox of these tests leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.networks.middlebox import middlebox


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_box_that_ends_while_an_end_reads_nothing() -> None:
    """A box that ends while its bytes wait for an end closes that connection, before the block ends."""
    taken: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", 0, limit=1024)
    async with server:
        before = _descriptors()
        async with middlebox(server.sockets[0].getsockname()[1]) as box:
            _, agent = await asyncio.open_connection("127.0.0.1", box.port)
            agent.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(8 << 20))
            while not taken:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)  # the box has more than the relay's socket takes
            agent.transport.abort()
            await asyncio.sleep(0.05)  # the box ends the connection, and waits for the relay
        assert _descriptors() == before + 1  # the relay's own end
        taken[0].transport.abort()
        await asyncio.sleep(0)
