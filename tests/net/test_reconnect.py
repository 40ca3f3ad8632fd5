"""The relay goes away and comes back: agents do too, and no stream that broke looks as if it had ended."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

import pytest

from tests.net.harness import KIB, Network, Process, Relay
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_LOST: Final = "Lost the session with the relay"
_BACK: Final = "The session with the relay is back"
_BLOCK: Final = bytes(64 * KIB)
_IDLE, _DOWNLOAD, _NEW = b"I", b"D", b"N"  # what a stream is for


class _Service:
    """Notes how each of the streams that were open when the relay went ended."""

    def __init__(self) -> None:
        self.fates: dict[bytes, str] = {}

    async def __call__(self, tcp: Tcp) -> None:
        kind = await tcp.receive_exactly(1)
        if kind == _NEW:
            await echo(tcp)
            return
        await tcp.send(kind)
        try:
            await (tcp.send_forever(_BLOCK) if kind == _DOWNLOAD else tcp.receive_all())
        except ConnectionError:
            self.fates[kind] = "reset"
        else:
            self.fates[kind] = "end"


async def _begin(port: int, kind: bytes) -> Tcp:
    tcp = await Tcp.connect(port)
    await tcp.send(kind)
    assert await tcp.receive_exactly(1) == kind
    return tcp


async def _echoes(port: int) -> None:
    async with asyncio.timeout(20), await Tcp.connect(port) as tcp:
        await tcp.send(_NEW + b"hello")
        assert await tcp.receive_exactly(5) == b"hello"


def _told(agent: Process) -> list[str]:
    """What it said of its session on standard error, each sentence by its first words."""
    return [told for line in agent.err.splitlines() for told in (_LOST, _BACK) if f" {told}" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_agents_come_back(network: Network, own_relay: Relay, number: signal.Signals) -> None:
    """A relay's restart resets open streams at both programs, and costs each agent two lines; then new ones work."""
    served = _Service()
    name = await network.service()
    async with service(served) as running:
        host = await network.host(name, running.port)
        client, port = await network.connect(name)
        async with await _begin(port, _IDLE) as idle, await _begin(port, _DOWNLOAD) as download:
            own_relay.stop(number)
            async with asyncio.timeout(10):
                for tcp in (idle, download):
                    with pytest.raises(ConnectionResetError):
                        await tcp.digest()
        await own_relay.start()
        for agent in (host, client):
            await agent.says(_BACK)
        await _echoes(port)
        assert served.fates == {_IDLE: "reset", _DOWNLOAD: "reset"}
    for agent in (host, client):
        assert _told(agent) == [_LOST, _BACK]


async def test_agents_wait_for_their_relay(network: Network, own_relay: Relay) -> None:
    """Agents that are started with --wait before their relay get through once it is there."""
    name = await network.service()
    own_relay.stop()
    async with service(_Service()) as running:
        host = network.agent("host", "host", name, "--port", str(running.port), "--wait", "10")
        client = network.agent("connect", "connect", name, "--wait", "10")
        await asyncio.gather(*(agent.says(r"Trying for|Waiting for") for agent in (host, client)))
        await own_relay.start()
        await host.says("is offered as")
        await _echoes(int((await client.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1]))
