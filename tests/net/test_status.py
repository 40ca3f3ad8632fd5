"""``kdispatch status`` with agents that run, hang and die, as scripts and people use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.guards.promises import promised
from tests.net.harness import Network, Relay, sizes
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))


async def _kdispatch(network: Network, *arguments: str) -> subprocess.CompletedProcess[str]:
    # In a thread: the services of these tests are in this process.
    return await asyncio.to_thread(
        subprocess.run, [_KDISPATCH, *arguments], env={**os.environ, **network.environment}, timeout=30,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


async def _status(network: Network) -> dict[str, dict[str, Any]]:
    """The agents by kind."""
    ended = await _kdispatch(network, "status", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert told["schema"] == 1
    return {agent["kind"]: agent for agent in told["agents"]}


def _files(network: Network) -> set[str]:
    return {path.suffix for path in (network.folder / "state" / "agents").iterdir()}


async def test_what_agents_say(network: Network) -> None:
    """Without agents the status is a valid answer; running ones report session, service and streams, at both ends."""
    none = await _kdispatch(network, "status")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "No agent runs here as this user.\n")
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port)
        client, port = await network.connect(name)
        async with await Tcp.connect(port) as one, await Tcp.connect(port):
            await one.send(b"x" * 5000)
            await one.receive_exactly(5000)
            told = await _status(network)
            listed = await _kdispatch(network, "status")
        for kind, process in (("host", host), ("connect", client)):
            agent = told[kind]
            assert agent["state"] == "connected" and agent["pid"] == process.pid and agent["relay"] == network.url
            assert 0 < agent["round_trip"] < 5 and agent["stream_count"] == 2
            assert ("withdraw_token" in agent, "control_token" in agent) == (False, False)
        offer, reached = told["host"]["services"][0], told["connect"]["services"][0]
        assert (offer["service"], offer["port"], offer["offered"]) == (name, local.port, True)
        assert (reached["service"], reached["port"], reached["host"]) == (name, port, None)
        assert {s["host"] for s in told["connect"]["streams"]} == {offer["host"]}
        assert sorted((s["sent"], s["received"]) for s in told["host"]["streams"]) == [(0, 0), (5000, 5000)]
        assert f"host of {name}, 127.0.0.1:{local.port}" in listed.stdout and "4.9 KiB" in listed.stdout
        assert {process.stop() for process in (client, host)} == {0}
    assert ".sock" not in _files(network)


@pytest.mark.timed
async def test_the_stopped_and_the_dead(network: Network) -> None:
    """An agent that hangs is reported as such in time, with all others; a dead one leaves nothing."""
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port)
        client, _ = await network.connect(name)
        host.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        told = await _status(network)
        assert time.monotonic() - begun < promised(8)
        assert (told["host"]["state"], told["connect"]["state"]) == ("not answering", "connected")
        assert told["host"]["stream_count"] is None and told["host"]["services"][0]["service"] == name
        host.send_signal(signal.SIGCONT)
        assert (await _status(network))["host"]["state"] == "connected"
        host.stop(signal.SIGKILL)
        client.stop(signal.SIGKILL)
        assert ".sock" in _files(network)
        assert await _status(network) == {}
        assert _files(network) == {""}  # the lock


async def test_a_relay_that_is_away(network: Network, own_relay: Relay) -> None:
    """During an outage, status shows the reason and the detached streams; a starting agent is shown, too."""
    name = await network.service()
    async with service(echo) as local:
        await network.host(name, local.port)
        client, port = await network.connect(name)
        async with await Tcp.connect(port) as one:
            await one.send(b"x")
            await one.receive_exactly(1)
            own_relay.stop(signal.SIGKILL)
            await client.says("Lost the session")
            waiting = network.agent("waiting", "connect", name, "--wait", "20")
            await waiting.says("Waiting for 20 s")
            ended = json.loads((await _kdispatch(network, "status", "--json")).stdout)["agents"]
            states = {agent["pid"]: agent["state"] for agent in ended}
            assert states[client.pid] == "reconnecting" and states[waiting.pid] == "connecting"
            (agent,) = [agent for agent in ended if agent["pid"] == client.pid]
            assert agent["last_error"]["code"] == "relay_unreachable" and agent["round_trip"] is None
            assert agent["next_try"] is None or 0 <= agent["next_try"] <= 15
            (stream,) = agent["streams"]
            assert stream["state"] == "detached" and 0 <= stream["detached"] < 20
            assert stream["detached"] + stream["expires_in"] == pytest.approx(120, abs=0.002)
            (offer,) = [agent for agent in ended if agent["kind"] == "host"]
            assert offer["services"][0]["offered"] is False


async def test_a_directory_with_a_long_name(network: Network) -> None:
    """If the state directory's name is too long for a unix socket, agents are asked over loopback.

    Garbage there, and clients that leave at once, do not affect a running connection.
    """
    network.environment["KDISPATCH_STATE_DIR"] = str(network.folder / ("s" * 120))
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port, "--drain-time", "20")
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as one:
            for path in (network.folder / ("s" * 120) / "agents").glob("*.json"):
                address, _, control = json.loads(path.read_text())["control"].partition(":")
                assert address == "127.0.0.1"
                for garbage in (b"", b"\n", b"\xff" * 100_000, b'{"token": "x", "command": "stop"}\n', b"half"):
                    async with await Tcp.connect(int(control)) as asker:
                        await asker.send(garbage)
                await one.send(b"still")
                assert await one.receive_exactly(5) == b"still"
        told = await _status(network)
        assert [told[kind]["state"] for kind in ("host", "connect")] == ["connected"] * 2
        assert (await _kdispatch(network, "agent", "stop", name)).returncode == 0
        assert await host.ended(5) == 0


@pytest.mark.parametrize("count", sizes(100, 1000))
async def test_many_streams(network: Network, count: int) -> None:
    """Both ends report a thousand streams completely, while their bytes go on."""
    name = await network.service()
    async with service(echo) as local, contextlib.AsyncExitStack() as stack:
        await network.host(name, local.port)
        _, port = await network.connect(name)
        many = [await stack.enter_async_context(await Tcp.connect(port)) for _ in range(count)]
        for tcp in many:
            await tcp.send(b"hello")
        for tcp in many:
            await tcp.receive_exactly(5)
        told = await _status(network)
        for agent in told.values():
            assert [s["received"] for s in agent["streams"]] == [5] * count == [5] * agent["stream_count"]
        assert len((await _kdispatch(network, "status")).stdout.splitlines()) > 2 * count


async def test_watching_into_a_file(network: Network) -> None:
    """If standard output is not a terminal, --watch prints a line for each agent every second, until Ctrl-C."""
    name = await network.service()
    async with service(echo) as local:
        await network.host(name, local.port)
        watching = network.program("watch", _KDISPATCH, "status", "--watch")
        await watching.says(rf"(?s)(\d\d:\d\d:\d\d \w{{12}} host of {name}: connected for .*, 0 streams\n.*){{2}}", 10)
        assert watching.stop(signal.SIGINT) == 0 and watching.err == ""
        assert "\x1b" not in watching.text
