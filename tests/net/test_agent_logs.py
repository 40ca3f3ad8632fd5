"""Logs of running agents: records that a user needs, and with --verbose one for every connection."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.net.harness import Network, Process, eventually
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow


def _records(agent: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in agent.err.splitlines()]


async def _talk(port: int) -> None:
    async with await Tcp.connect(port) as tcp:
        await tcp.send(b"hello")
        assert await tcp.receive_exactly(5) == b"hello"
        tcp.finish()
        assert await tcp.receive() == b""


async def test_verbose(network: Network) -> None:
    """With -v each end logs service, host, bytes each way, seconds and code of a connection; --json means JSON."""
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port, "--verbose", "--log-format", "json")
        agent = network.agent("connect", "connect", name, "-v", "--json", "--drain-time", "0")
        await agent.says(r"\}\n")
        shown = json.loads(agent.out)
        await _talk(shown["port"])
        for one in (host, agent):
            await eventually(lambda one=one: len(_records(one)), 1)  # type: ignore[misc]  # bound in the loop
    (host_id,) = re.findall(r"\(host (\w+)\)", host.out.decode())
    for one in (host, agent):
        (record,) = _records(one)
        assert 0 <= record["seconds"] < 10
        expected = {"service": name, "host": host_id, "sent": 5, "received": 5, "code": "closed", "level": "debug"}
        assert {key: record[key] for key in expected} == expected
    assert (shown["kind"], shown["service"], shown["log"]) == ("connect", name, None)
    assert re.fullmatch("[0-9a-f]{12}", shown["id"])


async def test_not_verbose(network: Network) -> None:
    """Without -v nothing is logged of a connection that ended well, or that a program gave up."""
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port)
        agent, port = await network.connect(name)
        await _talk(port)
        async with await Tcp.connect(port) as tcp:
            await tcp.send(b"x")
            await tcp.receive_exactly(1)
            tcp.reset()
        await eventually(lambda: local.open, 0)
    assert (host.err, agent.err) == ("", "")


async def test_format(network: Network) -> None:
    """An unknown log format is an error before a service is offered; KDISPATCH_LOG_FORMAT counts, too."""
    network.environment["KDISPATCH_LOG_FORMAT"] = "xml"
    agent = network.agent("connect", "connect", await network.service())
    assert await agent.ended() == 2
    assert "[bad_request]" in agent.err and "text or json" in agent.err
