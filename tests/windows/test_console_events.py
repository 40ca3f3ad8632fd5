"""The events of a console under Wine: Ctrl-Break in two stages, and the end of the console itself."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Final

import pytest

from tests.guards.promises import promised
from tests.net.harness import Process
from tests.net.tcp import Tcp, echo, service
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork, same

pytestmark = pytest.mark.slow

_BREAK: Final = 1
_CLOSE: Final = 2
_SIGBREAK: Final = 21
#: Seconds after which Windows ends a process that handles the end of its console.
_WINDOWS_WAITS: Final = promised(5.0)
_SCRIPT: Final = Path(__file__).with_name("console_event.py")


async def _send(network: WindowsNetwork, kind: str, event: int, seconds: float = 0.5) -> str:
    """Send an event to the only agent of this kind; returns what its handlers did in so many seconds."""
    told = json.loads((await network.run("status", "--json")).out)
    [pid] = [agent["pid"] for agent in told["agents"] if agent["kind"] == kind]
    command = network.windows.command(windows_path(_SCRIPT), str(pid), str(event), str(seconds))
    done = await network.start_wine("event", *command[1:]).done()
    assert done.status == 0, done
    return done.out.strip()


async def _host(network: WindowsNetwork, name: str, port: int) -> Process:
    host = network.console("host", "agent", "host", name, "--port", str(port), "--drain-time", "30")
    await host.says("is offered as")
    return host


async def test_ctrl_break(network: WindowsNetwork) -> None:
    """The first Ctrl-Break drains and the second ends at once, as Ctrl-C does."""
    name = await network.service()
    async with service(echo) as running, asyncio.timeout(120):
        host = await _host(network, name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await same(tcp)
            assert await _send(network, "host", _BREAK) == "returned"
            await host.says("Draining: no new connections, 30 s for the running one; Ctrl-C again ends at once")
            await same(tcp)
            await _send(network, "host", _BREAK)
            with pytest.raises(ConnectionResetError):
                await tcp.receive_all()
        assert await host.ended() == 128 + _SIGBREAK


async def test_a_closed_console(network: WindowsNetwork) -> None:
    """When its console closes, an agent gives running connections two seconds, says goodbye and ends before Windows."""
    name = await network.service()
    async with service(echo) as running, asyncio.timeout(120):
        host = await _host(network, name, running.port)
        client, port = await network.connect(name, "--grace", "60")
        async with await Tcp.connect(port) as tcp:
            await same(tcp)
            sending = asyncio.create_task(_send(network, "host", _CLOSE))
            await host.says("Draining: no new connections, 2 s for the running one")
            began = time.monotonic()
            await same(tcp)
            assert await sending == "waits"
            with pytest.raises(ConnectionResetError):  # at once, and not after the grace
                await tcp.receive_all()
            assert await host.ended() == 0
            assert time.monotonic() - began < _WINDOWS_WAITS
        assert client.status is None


async def test_a_console_closed_in_a_drain(network: WindowsNetwork) -> None:
    """An agent that drains ends at once when its console closes, and its peers know."""
    name = await network.service()
    async with service(echo) as running, asyncio.timeout(120):
        await network.host(name, running.port)
        client = network.console("client", "agent", "connect", name, "--drain-time", "30")
        port = int((await client.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1])
        async with await Tcp.connect(port) as tcp:
            await same(tcp)
            client.press(b"\x03")
            await client.says("Draining: no new connections, 30 s for the running one")
            await same(tcp)
            await _send(network, "connect", _CLOSE)
            with pytest.raises(ConnectionResetError):
                await tcp.receive_all()
        assert await client.ended() == 128 + _SIGBREAK


async def test_a_watched_status(network: WindowsNetwork) -> None:
    """``status --watch`` repaints a console, which the console's own mode lets obey escape sequences, until Ctrl-C."""
    name = await network.service()
    async with service(echo) as running, asyncio.timeout(120):
        await network.host(name, running.port)
        watch = network.console("watch", "status", "--watch")
        await watch.says(r"kdispatch status, \d\d:\d\d:\d\d; Ctrl-C ends")
        await watch.says(name)
        watch.press(b"\x03")
        assert await watch.ended() == 0
