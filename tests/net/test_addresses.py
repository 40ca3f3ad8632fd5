"""Relays with one family of addresses, with a dead address, and with several URLs."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from tests.guards.promises import promised
from tests.net.black_hole import black_hole
from tests.net.harness import Network, Relay
from tests.net.loop_stack import running_stack
from tests.net.tcp import Tcp, echo, service

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_LIVE: Final = (socket.AF_INET, "127.0.0.1")
_SOON: Final = promised(5.0)  # seconds within which an agent is connected


@pytest.fixture
def hole() -> Iterator[str]:
    """The URL of a relay that does not answer at all."""
    with black_hole() as port:
        yield f"http://127.0.0.2:{port}"


@pytest.fixture
async def another_relay(tmp_path: Path) -> AsyncIterator[Relay]:
    (tmp_path / "other").mkdir()
    relay = Relay(tmp_path / "other")
    try:
        await relay.start()
        yield relay
    finally:
        relay.stop()


async def _works_soon(network: Network, host_url: str, client_url: str) -> None:
    """Check that a host and a client with these URLs are up in time, and that a connection passes."""
    name = await network.service()
    async with service(echo) as served:
        began = time.monotonic()
        host = await network.host(name, served.port, "--relay", host_url)
        assert time.monotonic() - began < _SOON
        began = time.monotonic()
        client, port = await network.connect(name, "--relay", client_url)
        assert time.monotonic() - began < _SOON
        async with await Tcp.connect(port) as tcp:
            await tcp.send(b"hello")
            assert await tcp.receive_exactly(5) == b"hello"
        for agent in (client, host):
            agent.stop()


async def test_ipv6_alone(tmp_path: Path) -> None:
    """Agents reach a relay that has only an IPv6 address."""
    relay = Relay(tmp_path)
    relay.url = "http://[::1]:0"
    try:
        await relay.start()
        network = Network(tmp_path, relay.url, relay.token)
        try:
            await _works_soon(network, relay.url, relay.url)
        finally:
            network.stop()
    finally:
        relay.stop()


@pytest.mark.timed
async def test_the_first_of_two_urls_is_silent(network: Network, hole: str) -> None:
    """If the first URL does not answer at all, the second one is used in time."""
    await _works_soon(network, f"{hole},{network.url}", f"{hole}, {network.url}")


@pytest.mark.timed
async def test_the_first_of_two_urls_is_closed(network: Network) -> None:
    """If the first URL refuses, the second one is used at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        await _works_soon(network, f"{closed},{network.url}", f"{closed},{network.url}")


@pytest.mark.timed
async def test_commands_take_several_urls(network: Network, hole: str) -> None:
    """A command that sends one request uses the URL that answers; both flags count, in order."""
    began = time.monotonic()
    asked = network.program("list", _KDISPATCH, "whoami", "--relay", hole, "--relay", network.url, "--quiet")
    assert await asked.ended() == 0, asked.text
    assert asked.out == b"ann\n"
    assert time.monotonic() - began < _SOON


async def test_urls_of_two_relays(own_relay: Relay, another_relay: Relay, network: Network) -> None:
    """A second URL of another relay is reported and ignored, and the agent goes on with the first."""
    name = await network.service()
    async with service(echo) as served:
        host = await network.host(name, served.port, "--relay", f"{own_relay.url},{another_relay.url}")
        own_relay.stop()
        await host.says(r"leads to another relay than .*\[other_relay\]")
        await own_relay.start()
        await network.has_live_hosts(name, 1)
        assert host.status is None


@pytest.mark.timed
@pytest.mark.parametrize("dead", ["127.0.0.2", "::1"], ids=["silent", "other family"])
async def test_a_dead_first_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: str) -> None:
    """A name whose first address is dead is reached through its second, without waiting for the first."""
    async with running_stack(tmp_path) as stack:
        port = RelayUrl.parse(stack.url).port
        with black_hole(port=port):
            loop = asyncio.get_running_loop()
            resolve = loop.getaddrinfo

            async def two(host: Any, *more: Any, **named: Any) -> Any:
                if host != "localhost":  # uvloop resolves addresses, too
                    return await resolve(host, *more, **named)
                return [
                    (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
                    for family, address in ((socket.AF_INET6 if ":" in dead else socket.AF_INET, dead), _LIVE)
                ]

            monkeypatch.setattr(loop, "getaddrinfo", two, raising=False)
            began = loop.time()
            async with asyncio.timeout(_SOON):
                upgraded = await Dialer(RelayUrl.parse(f"http://localhost:{port}")).upgrade()
            upgraded.transport.abort()
            assert loop.time() - began < _SOON
