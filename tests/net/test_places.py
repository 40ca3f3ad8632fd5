"""State directories that containers share, or that are copies: each agent is ended only where it runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.net.harness import Network, Process
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
#: What a container is to processes: pids of its own, and a /proc that shows them.
_CONTAINER: Final = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]


@pytest.fixture
def containers() -> None:
    """Skip the test, with the reason, if there can be no namespaces."""
    if shutil.which("unshare") is None:
        pytest.skip("not installed: unshare")
    tried = subprocess.run([*_CONTAINER, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces here, which takes root: {tried.stderr.strip()}")


async def _run(network: Network, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **network.environment}
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=40, check=False
    )


async def _status(network: Network, *inside: str) -> dict[str, dict[str, Any]]:
    """The agents that 'status' shows, by kind."""
    done = await _run(network, *inside, _KDISPATCH, "status", "--json")
    return {agent["kind"]: agent for agent in json.loads(done.stdout)["agents"]}


async def _echoes(tcp: Tcp, text: bytes) -> None:
    await tcp.send(text)
    assert await tcp.receive_exactly(len(text)) == text


async def _stays(network: Network, agent: Process, agent_id: str, *inside: str) -> None:
    """'agent stop' from another place leaves the agent running, and says where it runs."""
    for options in ([], ["--now"]):
        done = await _run(network, *inside, _KDISPATCH, "agent", "stop", agent_id, *options)
        assert (done.returncode, "runs in another container" in done.stderr) == (3, True), done.stderr
    assert agent.status is None
    assert (network.folder / "state" / "agents" / f"{agent_id}.json").exists()


@pytest.mark.usefixtures("containers")
async def test_containers_that_share_a_directory(network: Network) -> None:
    """Neither container ends or removes what runs in the other; each stops its own, and status shows the other's."""
    name = await network.service()
    async with service(echo) as local:
        host = network.program(
            "host", *_CONTAINER, _KDISPATCH, "agent", "host", name, "--port", str(local.port), "--drain-time", "0"
        )
        await host.says("is offered as")
        ours, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp, b"begun")
            shown, inside = await _status(network), await _status(network, *_CONTAINER)
            assert [shown[kind]["state"] for kind in ("host", "connect")] == ["elsewhere", "connected"]
            # The command inside is in a third container.
            assert [inside[kind]["state"] for kind in ("host", "connect")] == ["elsewhere", "elsewhere"]
            await _stays(network, host, shown["host"]["id"])
            await _stays(network, ours, shown["connect"]["id"], *_CONTAINER)
            await _echoes(tcp, b"goes on")
        done = await _run(network, _KDISPATCH, "agent", "stop", name, "--json")
        assert (done.returncode, json.loads(done.stdout)["elsewhere"]) == (0, [shown["host"]["id"]])
        assert "runs in another container" in done.stderr
        assert await ours.ended() == 0 and host.status is None
        assert await network.live_hosts(name) == 1


async def test_a_copied_state_directory(network: Network) -> None:
    """A host on a copy of another's state directory takes nothing from the other, and reports that it is a copy."""
    name = await network.service()
    async with service(echo) as local:
        first = await network.host(name, local.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp, b"begun")
            state = network.folder / "state"
            # Sockets can't be copied; nor would they be by most programs.
            shutil.copytree(state, network.folder / "copy", ignore=shutil.ignore_patterns("*.sock"))
            network.environment["KDISPATCH_STATE_DIR"] = str(network.folder / "copy")
            second = await network.host(name, local.port)
            await second.says("an agent on this machine wrote its slots. This agent uses a new identity")
            await network.has_live_hosts(name, 2)
            await _echoes(tcp, b"goes on")
        assert first.status is None
