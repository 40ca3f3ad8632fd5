"""Pages of hosts and clients of a real switch, while they come and go."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Open, Opened
from tests.relay.test_gate import _Agent
from tests.relay.test_limits import Caller, site

SERVICE = "ann/web"
COUNT = 7  # hosts, and clients


@pytest.fixture(autouse=True)
def database(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "relay.db")


async def offer(agent: _Agent, number: int, token: str) -> str:
    """Host the service; returns the host's id."""
    host = host_id(agent.process, SERVICE)
    message = Offer(service=SERVICE, host=host, digest="00" * 32, token=token, labels={"of": agent.process[:8]})
    agent.send(frame(frames.OFFER, number, payload=message.encode()))
    await agent.next(frames.OFFERED)
    return host


async def connect(agent: _Agent, number: int, host: _Agent, token: str) -> None:
    """Open a stream to the host by its pin."""
    wish = Open(
        service=SERVICE, uuid=f"{agent.process[:24]}{number:08x}", limit=1 << 16, token=token,
        pin=host_id(host.process, SERVICE),
    )  # fmt: skip
    agent.send(frame(frames.OPEN, number, payload=wish.encode()))
    asked = (await host.next(frames.OPEN))[2]
    host.send(frame(frames.OPENED, asked, payload=Opened(limit=1 << 16, attempt=1).encode()))
    await agent.next(frames.OPENED)


async def pages(caller: Caller, what: str, token: str, size: int) -> list[list[dict[str, Any]]]:
    """All pages of a list of the service."""
    found: list[list[dict[str, Any]]] = []
    cursor = ""
    while True:
        answer = await caller("GET", f"/api/v1/services/{SERVICE}/{what}?limit={size}{cursor}", token)
        assert answer.status == 200, answer.body
        found.append(answer.body[what])
        if "next" not in answer.body:
            return found
        cursor = f"&cursor={answer.body['next']}"


async def test_hosts_and_clients(tmp_path: Path) -> None:
    """Each host, and each client by its token, is on one page, in order, with its streams, whatever ends in between."""
    async with site(tmp_path) as relay, Caller.of(relay) as caller, AsyncExitStack() as stack:
        ann = await caller.admin()
        body = {"name": "web", "access": "token", "pins": True}
        assert (await caller("POST", "/api/v1/services", ann, json=body)).status == 201
        wish = {"name": "c", "for": "connect", "service": "web"}
        cli = (await caller("POST", "/api/v1/tokens", ann, json=wish)).body["token"]
        agents = [await stack.enter_async_context(_Agent.of(relay, bytes([n]) * 32)) for n in range(1, 2 * COUNT + 1)]
        serving, clients = agents[:COUNT], agents[COUNT:]
        hosts = [await offer(agent, 1, ann) for agent in serving]
        for agent in serving[:3]:
            assert await offer(agent, 3, ann) in hosts  # offered twice, it is listed once
        for agent in clients:
            await connect(agent, 1, serving[0], ann)
            await connect(agent, 3, serving[1], cli)
            await connect(agent, 5, serving[1], cli)

        found = await pages(caller, "hosts", ann, 3)
        assert [len(page) for page in found] == [3, 3, 1]
        listed = [entry["host"] for page in found for entry in page]
        assert listed == sorted(hosts)
        streams = {entry["host"]: entry["streams"] for page in found for entry in page}
        assert (streams[hosts[0]], streams[hosts[1]], streams[hosts[2]]) == (COUNT, 2 * COUNT, 0)

        found = await pages(caller, "clients", ann, 4)  # a page may end between the two entries of an agent
        assert [len(page) for page in found] == [4, 4, 4, 2]
        places = [(entry["agent"], entry["token"]["id"]) for page in found for entry in page]
        assert places == sorted(set(places)) and len(places) == 2 * COUNT
        assert sorted(entry["streams"] for page in found for entry in page) == [1] * COUNT + [2] * COUNT

        first = (await caller("GET", f"/api/v1/services/{SERVICE}/hosts?limit=2", ann)).body
        assert (await caller("DELETE", f"/api/v1/hosts/{listed[1]}", ann)).status == 204  # the cursor's own
        rest = await caller("GET", f"/api/v1/services/{SERVICE}/hosts?limit=200&cursor={first['next']}", ann)
        assert [entry["host"] for entry in rest.body["hosts"]] == listed[2:]
