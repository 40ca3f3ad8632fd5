"""Many small messages in one read at the relay."""

from __future__ import annotations

import asyncio

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Opened
from tests.aio.twin import running_gate
from tests.core.wire import ws_frame
from tests.relay.test_gate import _Agent


async def test_they_are_gathered() -> None:
    """Of the small messages in one read only the first goes on at once; the others go together, in order."""
    async with running_gate() as relay, _Agent.of(relay, b"\x02" * 32) as host, _Agent.of(relay) as client:
        await host.offer()
        client.open(1)
        await host.next(frames.OPEN)
        host.send(frame(frames.OPENED, 2, payload=Opened(limit=20_000, attempt=1).encode()))
        await client.next(frames.OPENED)
        data = bytes(range(200))
        client._writer.write(
            b"".join(ws_frame(0x82, frame(frames.DATA, 1, n, data[n : n + 1]), masked=True) for n in range(200))
        )
        received, count = b"", 0
        async with asyncio.timeout(20):
            while len(received) < len(data):
                received += (await host.next(frames.DATA))[4]
                count += 1
        assert received == data
        assert count < 20  # one, if there was only one read
