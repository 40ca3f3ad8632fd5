"""When the relay goes away and comes back, so do the agents, and the connections that they carry go on."""

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


async def _echoes(tcp: Tcp, text: bytes) -> None:
    async with asyncio.timeout(20):
        await tcp.send(text)
        assert await tcp.receive_exactly(len(text)) == text


def _told(agent: Process) -> list[str]:
    """What it reported of its session on standard error, each sentence by its first words."""
    return [told for line in agent.err.splitlines() for told in (_LOST, _BACK) if f" {told}" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_connections_go_on(network: Network, own_relay: Relay, number: signal.Signals) -> None:
    """A relay's restart costs each agent two lines and no connection: those opened before and during it work."""
    name = await network.service()
    async with service(echo) as running:
        host = await network.host(name, running.port)
        client, port = await network.connect(name)
        async with await Tcp.connect(port) as idle, await Tcp.connect(port) as busy:
            await _echoes(idle, b"before")
            await _echoes(busy, b"before")
            own_relay.stop(number)
            await client.says(_LOST)
            sending = asyncio.create_task(busy.send(_BLOCK * 40))
            async with await Tcp.connect(port) as early:  # accepted while there is no relay
                asking = asyncio.create_task(_echoes(early, b"meanwhile"))
                await own_relay.start()
                await asking
            await _echoes(idle, b"after")
            async with asyncio.timeout(20):
                assert await busy.receive_exactly(40 * len(_BLOCK)) == _BLOCK * 40
                await sending
    assert "2 running connections can wait for 120 s" in client.err
    for agent in (host, client):
        assert _told(agent) == [_LOST, _BACK]


async def test_nobody_comes_back(network: Network, own_relay: Relay) -> None:
    """When the grace is over both programs are reset, and the agent reports it in one line."""
    name = await network.service()
    async with service(echo) as running:
        await network.host(name, running.port, "--grace", "0.5")
        client, port = await network.connect(name, "--grace", "0.5")
        streams = [await Tcp.connect(port) for _ in range(3)]
        for tcp in streams:
            await _echoes(tcp, b"hello")
        own_relay.stop(signal.SIGKILL)
        for tcp in streams:
            async with tcp:
                with pytest.raises(ConnectionResetError):
                    await tcp.digest()
    await client.says(r"3 connections to \S+ were reset: .*\[resume_expired\]")


async def test_a_killed_agent_is_known_by_its_successor(network: Network) -> None:
    """The clients of a host that was killed and restarted are told at once, long before their grace is over."""
    name = await network.service()
    async with service(echo) as running:
        host = await network.host(name, running.port)
        client, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp, b"hello")
            host.stop(signal.SIGKILL)
            await network.host(name, running.port)
            async with asyncio.timeout(10):
                with pytest.raises(ConnectionResetError):
                    await tcp.digest()
    await client.says(r"\[peer_restarted\]")


async def test_an_agent_that_ends_tells_its_peers(network: Network) -> None:
    """A stopped agent's connections are reset at the other end at once, and not after a grace."""
    name = await network.service()
    async with service(echo) as running:
        host = await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp, b"hello")
            host.stop()
            async with asyncio.timeout(20):
                with pytest.raises(ConnectionResetError):
                    await tcp.digest()


async def test_agents_wait_for_their_relay(network: Network, own_relay: Relay) -> None:
    """Agents that are started with --wait before their relay connect once it is there."""
    name = await network.service()
    own_relay.stop()
    async with service(echo) as running:
        host = network.agent("host", "host", name, "--port", str(running.port), "--wait", "10")
        client = network.agent("connect", "connect", name, "--wait", "10")
        await asyncio.gather(*(agent.says(r"Trying for|Waiting for") for agent in (host, client)))
        await own_relay.start()
        await host.says("is offered as")
        async with await Tcp.connect(int((await client.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1])) as tcp:
            await _echoes(tcp, b"hello")
