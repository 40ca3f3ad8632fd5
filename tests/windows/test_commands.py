"""Commands under Wine: the README's first tunnel, agents that are stopped, and the words and statuses of Linux."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import zipfile
from typing import Final

import pytest

from kdispatch_protocol.errors import CODES
from tests.guards.promises import promised
from tests.net.harness import Relay
from tests.net.tcp import Tcp, echo, service
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork, echoes, same

pytestmark = pytest.mark.slow

_DETACHES_WITHIN: Final = promised(3.0)
_CTRL_C: Final = b"\x03"


async def test_the_first_tunnel(network: WindowsNetwork, own_relay: Relay) -> None:
    """The README's commands work: from a sign-up to a tunnel, in the background too, which ``agent stop`` ends."""
    network.environment |= {"KDISPATCH_TOKEN": "", "KDISPATCH_RELAY": ""}
    for command in (("sign-up", "bob", "--relay", network.url), ("service", "create", "web")):
        assert (await network.run(*command)).status == 0
    async with service(echo) as running:
        host = network.agent("host", "host", "bob/web", "--port", str(running.port))
        await host.says("is offered as bob/web")
        client = network.agent("connect", "connect", "bob/web", "--port", "0")
        await echoes(int((await client.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1]))
        began = time.monotonic()
        detached = network.start("detached", "agent", "connect", "bob/web", "--detach", "--quiet")
        assert await detached.ended() == 0
        assert time.monotonic() - began < _DETACHES_WITHIN
        await echoes(int(await detached.output()))
        told = await network.run("status", "--json")
        kinds = sorted(agent["kind"] for agent in json.loads(told.out)["agents"])
        assert kinds == ["connect", "connect", "host"]
        stopped = await network.run("agent", "stop", "bob/web")
        assert (stopped.status, stopped.out.count("stopped ")) == (0, 3)
        assert [await agent.ended() for agent in (host, client)] == [0, 0]
    assert (await network.run("status")).err == "No agent runs here as this user.\n"
    assert list((network.state / "agents").glob("*.json")) == []


async def test_stop_lets_connections_end(network: WindowsNetwork) -> None:
    """``agent stop`` lets a running connection end, and then both agents end well."""
    name = await network.service()
    async with service(echo) as running:
        host = await network.host(name, running.port, "--drain-time", "30")
        client, port = await network.connect(name, "--drain-time", "30")
        async with await Tcp.connect(port) as tcp:
            await same(tcp, b"before")
            stopping = asyncio.create_task(network.run("agent", "stop", name))
            for agent in (host, client):
                await agent.says("Draining: no new connections, 30 s for the running one")
            await same(tcp, b"meanwhile")
            tcp.finish()
            assert await tcp.receive_all() == b""
        assert (await stopping).status == 0
        assert [await agent.ended() for agent in (host, client)] == [0, 0]


async def test_stop_at_once(network: WindowsNetwork) -> None:
    """``agent stop --now`` resets the running connection, at both programs."""
    name = await network.service()
    broken = asyncio.Event()

    async def wait(tcp: Tcp) -> None:
        try:
            await echo(tcp)
        except ConnectionResetError:
            broken.set()

    async with service(wait) as running, asyncio.timeout(60):
        await network.host(name, running.port, "--drain-time", "30")
        client, port = await network.connect(name, "--drain-time", "30")
        async with await Tcp.connect(port) as tcp:
            await same(tcp, b"before")
            assert (await network.run("agent", "stop", "--now", name)).status == 0
            with pytest.raises(ConnectionResetError):
                await tcp.receive_all()
            await broken.wait()
        assert await client.ended() == 128 + signal.SIGTERM


async def test_ctrl_c(network: WindowsNetwork) -> None:
    """In a console, the first Ctrl-C drains and the second ends at once; without connections one is enough."""
    name = await network.service()
    async with service(echo) as running, asyncio.timeout(60):
        host = network.console("host", "agent", "host", name, "--port", str(running.port), "--drain-time", "30")
        await host.says("is offered as")
        client, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await same(tcp, b"before")
            host.press(_CTRL_C)
            await host.says("Draining: no new connections, 30 s for the running one; Ctrl-C again ends at once")
            await same(tcp, b"meanwhile")
            host.press(_CTRL_C)
            with pytest.raises(ConnectionResetError):
                await tcp.receive_all()
        assert await host.ended() == 128 + signal.SIGINT
        again = network.console("again", "agent", "host", name, "--port", str(running.port))
        await again.says("is offered as")
        again.press(_CTRL_C)
        await again.says(r"Ended\.")
        assert await again.ended() == 0
    assert client.status is None


async def test_withdraw(network: WindowsNetwork) -> None:
    """``service withdraw`` ends a host, whose agent says why and has the status of an error."""
    name = await network.service()
    async with service(echo) as running:
        host = await network.host(name, running.port)
        [host_id] = (await network.run("service", "hosts", name, "--quiet")).out.split()
        assert (await network.run("service", "withdraw", host_id)).out == f"withdrawn {host_id}\n"
        assert await host.ended() == (CODES["withdrawn"].exit or 1)


async def test_a_login(network: WindowsNetwork, own_relay: Relay) -> None:
    """A token from standard input is stored, used by the next command, and dropped again."""
    network.environment["KDISPATCH_TOKEN"] = ""
    assert (await network.run("login", given=f"{own_relay.token}\n")).status == 0
    assert (await network.run("whoami", "--quiet")).out == "ann\n"
    assert (await network.run("logout", "ann", "--yes")).status == 0
    assert "[not_logged_in]" in (await network.run("whoami")).err


async def test_doctor(network: WindowsNetwork) -> None:
    """``doctor`` finds nothing wrong with a working relay, and writes its file for support."""
    bundle = network.folder / "for support.zip"
    told = await network.run("doctor", "--bundle", windows_path(bundle))
    assert (told.status, "All is well." in told.out) == (0, True), told
    with zipfile.ZipFile(bundle) as opened:
        assert opened.testzip() is None and opened.namelist()
