"""A host agent and its local port, as processes: the agent watches the port without connecting, and sees it close."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.guards.promises import promised
from tests.net.harness import Network, sizes
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_SEEN_WITHIN = promised(10.0)


@pytest.mark.parametrize("seconds", sizes(3, 12))
async def test_watching_costs_the_service_nothing(network: Network, seconds: float) -> None:
    """A watched port gets no connections; when it closes, its host leaves the list in time, and comes back."""
    name = await network.service()
    async with service(echo) as local:
        await network.host(name, local.port)
        await asyncio.sleep(seconds)
        assert local.accepted == 0
        assert await network.live_hosts(name) == 1
    closed = time.monotonic()
    await network.has_live_hosts(name, 0, wait=_SEEN_WITHIN)
    assert time.monotonic() - closed < _SEEN_WITHIN
    async with service(echo, port=local.port) as back:
        await network.has_live_hosts(name, 1)
        assert back.accepted == 0


async def test_exit_when_closed_drains(network: Network) -> None:
    """With --exit-when-closed a running connection goes on after the port closed, and the host ends after it."""
    name = await network.service()
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    host = network.agent("host", "host", name, "--port", str(server.sockets[0].getsockname()[1]), "--exit-when-closed")
    await host.says("is offered as")
    _, port = await network.connect(name)
    async with await Tcp.connect(port) as tcp:
        await tcp.send(b"one")
        assert await tcp.receive_exactly(3) == b"one"
        server.close()  # its connections go on
        await network.has_live_hosts(name, 0, wait=_SEEN_WITHIN)
        await host.says("running connections may go on")
        await asyncio.sleep(0.3)
        assert host.status is None
        await tcp.send(b"two")
        assert await tcp.receive_exactly(3) == b"two"
    assert await host.ended(10) == 1
    assert "[local_port_closed]" in host.err


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
