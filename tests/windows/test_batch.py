"""kdispatch in batch files of cmd.exe under Wine: two agents in the background, and each status as ``%ERRORLEVEL%``."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from tests.net.tcp import Tcp, echo, service
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork, same

pytestmark = pytest.mark.slow


def _batch(network: WindowsNetwork, *commands: str) -> str:
    """A batch file that runs these commands of kdispatch and prints the status of each; returns its name."""
    [_, python] = network.windows.command()
    lines = [f"{windows_path(Path(python))} -m kdispatch {command}\r\necho status %ERRORLEVEL%" for command in commands]
    file = network.folder / "run.bat"
    file.write_text("\r\n".join(["@echo off", *lines, ""]), encoding="ascii", newline="")
    return windows_path(file)


async def test_two_agents(network: WindowsNetwork) -> None:
    """A batch file starts a host and a client in the background and stops both, and sees the status of each command."""
    name = await network.service()
    async with service(echo) as running:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            commands = (
                f"agent host {name} --port {running.port} --detach --quiet",
                f"agent connect {name} --detach --quiet",
                "status --quiet",
                f"agent stop {name} --quiet",
                f"agent stop {name}",
                "frobnicate",
                f"whoami --relay http://127.0.0.1:{closed.getsockname()[1]}",
            )
            batch = network.start_wine("batch", "cmd.exe", "/c", _batch(network, *commands))
            out = (await batch.output(90)).replace("\r\n", "\n")
    assert re.findall(r"(?m)^status (\d+)$", out) == ["0", "0", "0", "0", "3", "2", "6"], out
    ids = re.findall(r"(?m)^[0-9a-f]{12}$", out)
    assert len(ids) == 4 and set(ids[:2]) == set(ids[2:]), out  # those of status, and those of agent stop


async def test_an_agent_that_is_stopped_at_once(network: WindowsNetwork) -> None:
    """A batch file sees 0 of an agent that drained, and 143 of one that another command ended at once."""
    name = await network.service()
    async with service(echo) as running, asyncio.timeout(120):
        host = f"agent host {name} --port {running.port} --drain-time 30"
        batch = network.start_wine("batch", "cmd.exe", "/c", _batch(network, host, host))
        await batch.says("is offered as")
        assert (await network.run("agent", "stop", name)).status == 0
        await batch.says("status 0\\s[^$]*is offered as")
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await same(tcp)
            [host_id] = (await network.run("service", "hosts", name, "--quiet")).out.split()
            await network.run("agent", "stop", "--now", host_id)
            await batch.says("status 143")
