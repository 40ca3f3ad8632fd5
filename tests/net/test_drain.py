"""An agent that is asked to end lets connections finish; asked again, it ends at once and tells its peers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from kdispatch.cli.agent import _DRAIN_TIME
from kdispatch.cli.interruption import LAST_WORDS
from kdispatch_relay.settings import RelaySettings
from tests.net.harness import Network, Process, Relay, eventually
from tests.net.tcp import Service, Tcp, echo, service

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_DOCKER: Final = 10.0  # seconds between SIGTERM and SIGKILL
_LOAD: Final = 5.0  # more for a machine that others use as well
_SOON: Final = 25.0  # seconds: far below the grace, after which peers would know as well


@dataclass
class Tunnel:
    """A host and a client with one connection, and a long drain time."""

    name: str
    local: Service
    host: Process
    client: Process
    port: int
    one: Tcp

    async def echoes(self, text: bytes) -> None:
        await self.one.send(text)
        assert await self.one.receive_exactly(len(text)) == text


@asynccontextmanager
async def tunnel(network: Network) -> AsyncIterator[Tunnel]:
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port, "--drain-time", "60")
        client, port = await network.connect(name, "--drain-time", "60")
        async with await Tcp.connect(port) as one:
            made = Tunnel(name, local, host, client, port, one)
            await made.echoes(b"begun")
            yield made


async def _stop(network: Network, *arguments: str) -> int:
    command = [_KDISPATCH, "agent", "stop", *arguments]
    environment = {**os.environ, **network.environment}
    ended = await asyncio.to_thread(subprocess.run, command, env=environment, timeout=40, check=False)
    return ended.returncode


async def test_a_host(network: Network) -> None:
    """At the first signal a host is withdrawn, its connection goes on, and at its end the host ends with 0."""
    async with tunnel(network) as made:
        made.host.send_signal(signal.SIGINT)
        await made.host.says(r"Draining: no new connections, 60 s for the running one; Ctrl-C again ends at once\.")
        await network.has_live_hosts(made.name, 0)
        await made.echoes(b"goes on")
        made.one.finish()
        assert await made.one.receive() == b""
        assert await made.host.ended(_SOON) == 0
        assert made.host.err.splitlines()[-1].endswith("Ended.")


async def test_a_client(network: Network) -> None:
    """At the first signal a client stops listening, and its connections go on."""
    async with tunnel(network) as made, await Tcp.connect(made.port) as two:
        await two.send(b"x")
        await two.receive_exactly(1)
        made.client.send_signal(signal.SIGTERM)
        await made.client.says(r"60 s for 2 running ones")
        with pytest.raises(ConnectionRefusedError):
            await Tcp.connect(made.port)
        await made.echoes(b"goes on")
        made.one.close()
        two.close()
        assert await made.client.ended(_SOON) == 0


@pytest.mark.parametrize(("end", "by"), [("host", "signals"), ("client", "stop --now")])
async def test_at_once(network: Network, end: str, by: str) -> None:
    """The second signal, like 'agent stop --now', ends an agent at once; its peer learns of it without a grace."""
    async with tunnel(network) as made:
        agent = made.host if end == "host" else made.client
        if by == "signals":
            agent.send_signal(signal.SIGINT)
            await agent.says("Draining")
            agent.send_signal(signal.SIGINT)
            expected = 130
        else:
            assert await _stop(network, "--now", _id_of(network, agent)) == 0
            expected = 143
        assert await agent.ended(_SOON) == expected
        assert "Ending at once: 1 running connection is reset." in agent.err
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(_SOON):
                await made.one.receive()
        await eventually(lambda: made.local.open, 0, wait=_SOON)
    other = made.client if end == "host" else made.host
    assert other.stop() == 0 and "Draining" not in other.err


async def test_stop_is_the_first_signal(network: Network) -> None:
    """'agent stop' drains, also when repeated, and '--now' then cuts the drain short."""
    async with tunnel(network) as made:
        agent = _id_of(network, made.host)
        waiting = [asyncio.create_task(_stop(network, agent)) for _ in range(2)]
        await made.host.says("Draining")
        await asyncio.sleep(0.5)
        await made.echoes(b"goes on")
        assert made.host.status is None
        assert await _stop(network, agent, "--now") == 0
        assert await asyncio.gather(*waiting) == [0, 0]
        assert await made.host.ended(_SOON) == 143


async def test_the_time_is_over(network: Network) -> None:
    """What still runs when the drain time is over is reset at both ends, with one line in the output."""
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port, "--drain-time", "0.5")
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as one:
            await one.send(b"x")
            await one.receive_exactly(1)
            host.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(_SOON):
                    await one.receive()
        assert await host.ended(_SOON) == 0
        assert "Ended after 0.5 s: 1 running connection is reset." in host.err


async def test_an_agent_that_has_not_started(network: Network) -> None:
    """An agent that still waits for a host is stopped like any other."""
    name = await network.service()
    waiting = network.agent("waiting", "connect", name, "--wait", "30")
    await waiting.says("Waiting for 30 s")
    begun = time.monotonic()
    assert await _stop(network, name) == 0
    assert await waiting.ended(_SOON) == 143 and time.monotonic() - begun < _SOON


def _id_of(network: Network, agent: Process) -> str:
    for path in (network.folder / "state" / "agents").glob("*.json"):
        if f'"pid": {agent.pid},' in path.read_text():
            return path.stem
    raise AssertionError("no record")


async def test_docker_stop(network: Network) -> None:
    """By default an agent ends by itself within the 10 s after SIGTERM, and the other end is told."""
    name = await network.service()
    async with service(echo) as local:
        host = network.agent("host", "host", name, "--port", str(local.port))
        await host.says("is offered as")
        client = network.agent("connect", "connect", name)
        port = int((await client.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1])
        async with await Tcp.connect(port) as one:
            await one.send(b"x")
            await one.receive_exactly(1)
            began = time.monotonic()
            host.send_signal(signal.SIGTERM)
            await network.has_live_hosts(name, 0, wait=_SOON)
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(_DOCKER + _LOAD):
                    await one.receive()
            assert await host.ended(_DOCKER + _LOAD) == 0
            assert time.monotonic() - began > 7  # it had most of the time


async def test_docker_stop_of_a_relay(own_relay: Relay, network: Network) -> None:
    """By default a relay ends by itself within the 10 s after SIGTERM; connections go on at the next one."""
    own_relay.stop()
    await own_relay.start("--drain-time", f"{RelaySettings().drain_time:g}")
    relay = own_relay.running
    name = await network.service()
    async with service(echo) as local:
        await network.host(name, local.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as one:
            await one.send(b"x")
            await one.receive_exactly(1)
            relay.send_signal(signal.SIGTERM)
            assert await relay.ended(_DOCKER + _LOAD) == 0
            assert "1 host and 1 client are cut off" in relay.err
            await own_relay.start()
            await one.send(b"goes on")
            assert await one.receive_exactly(7) == b"goes on"


def test_defaults_leave_time_for_last_words() -> None:
    """By default agents and relays drain for less time than Docker waits, with two seconds for the rest."""
    assert max(_DRAIN_TIME, RelaySettings().drain_time) + LAST_WORDS <= _DOCKER
