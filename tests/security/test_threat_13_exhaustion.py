"""Threat 13: exhaustion of connections, streams and memory."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.aio.twin import until
from tests.net.harness import Usage
from tests.relay.test_door import Visitor
from tests.relay.test_gate import _UPGRADE, _request
from tests.security.site import Agent, Caller, Site, carried, made, offers, opens, site

_SECRETS: Final = [bytes([number]) * 32 for number in range(1, 40)]


async def _upgrade(relay: Site, address: str = "127.0.0.1") -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, local_addr=(address, 0))
    try:
        writer.write(_request(_UPGRADE))
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    finally:
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize("kind", ["limit_source_sessions", "limit_sessions"])
async def test_sessions(folder: Path, kind: str) -> None:
    """A session beyond the cap, per source or in total, is refused at the upgrade with 503 and Retry-After."""
    async with site(folder, **dict[str, Any]({kind: 3})) as relay, AsyncExitStack() as stack:
        for secret in _SECRETS[:3]:
            await stack.enter_async_context(Agent.of(relay, secret))
        head = await _upgrade(relay)
        assert head.startswith("HTTP/1.1 503") and "Retry-After: " in head
        elsewhere = await _upgrade(relay, "127.0.0.2")
        assert elsewhere.startswith("HTTP/1.1 101" if kind == "limit_source_sessions" else "HTTP/1.1 503")


async def test_connections_before_hello(folder: Path) -> None:
    """Unauthenticated connections are capped, and an honest agent still gets in."""
    async with site(folder, Limits(arrivals=5)) as relay, AsyncExitStack() as stack:
        for _ in range(15):
            await stack.enter_async_context(Visitor.of(relay.port))
        async with Agent.of(relay):
            assert len(relay.relay.arrivals) <= 5
            assert relay.relay.arrivals.refused["busy"] >= 10


@pytest.mark.parametrize(
    ("limits", "frame_of"),
    [(Limits(opens=3), "OPEN"), (Limits(offers=3), "OFFER"), (Limits(streams_client=3), "stream")],
    ids=["opens", "offers", "streams"],
)
async def test_one_session(folder: Path, limits: Limits, frame_of: str) -> None:
    """A session beyond its cap of opens, offers or streams gets `busy`, and other sessions are not affected."""
    async with (
        site(folder, limits) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, _SECRETS[0]) as host,
        Agent.of(relay, _SECRETS[1]) as client,
        Agent.of(relay, _SECRETS[2]) as other,
    ):
        admin = await caller.admin()
        for name in "abcd":
            await made(caller, "/services", admin, name=name, access="public")
        assert await offers(host, 1, "ann/a", admin) == "OFFERED"
        told = []
        for number in (1, 3, 5, 7):
            if frame_of == "OFFER":
                told.append(await offers(client, number, f"ann/{'abcd'[number // 2]}", admin))
            elif frame_of == "OPEN":
                told.append(await opens(client, number, "ann/a"))
            elif number < 7:
                await carried(client, host, number, "ann/a")
                told.append("OPENED")
            else:
                told.append(await opens(client, number, "ann/a"))
        assert told[:3] == [{"OPEN": "TRYING", "OFFER": "OFFERED", "stream": "OPENED"}[frame_of]] * 3
        assert told[3] == "busy"
        assert await opens(other, 1, "ann/a") == "TRYING"


async def test_an_account(folder: Path) -> None:
    """A service beyond an account's quota is refused with `quota_exceeded`."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        admin = await caller.admin()
        refused = None
        for number in range(200):
            answer = await caller("POST", "/api/v1/services", admin, json={"name": f"s{number}"})
            if answer.status != 201:
                refused = answer
                break
        assert refused is not None and (refused.status, refused.body["code"]) == (429, "quota_exceeded")
        assert "Retry-After" in refused.headers


async def test_strangers_at_a_public_service(folder: Path) -> None:
    """One source that opens as many streams of a public service as it can leaves capacity for the private service."""
    async with (
        site(folder, limit_public_streams=75, limit_source_streams=50) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, _SECRETS[0]) as host,
        Agent.of(relay, _SECRETS[1]) as stranger,
        Agent.of(relay, _SECRETS[2]) as owner,
    ):
        admin = await caller.admin()
        await relay.relay.authority.repository.accounts.set_quotas("ann", {"streams": 16})
        await made(caller, "/services", admin, name="open", access="public")
        await made(caller, "/services", admin, name="own", access="token")
        assert await offers(host, 1, "ann/open", admin) == "OFFERED"
        assert await offers(host, 3, "ann/own", admin) == "OFFERED"
        told = [await opens(stranger, 2 * n + 1, "ann/open") for n in range(20)]
        assert await opens(owner, 1, "ann/own", admin) == "TRYING"
        assert 0 < told.count("TRYING") < 16
        assert told[-1] in {"busy", "quota_exceeded"}


async def test_everything_comes_back(folder: Path) -> None:
    """After many sessions and their streams end, descriptors and tables are back at their old counts."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web", access="public")
        before = Usage.of(os.getpid()).descriptors
        for _ in range(2):
            async with AsyncExitStack() as stack:
                host = await stack.enter_async_context(Agent.of(relay, _SECRETS[0]))
                assert await offers(host, 1, "ann/web", admin) == "OFFERED"
                for secret in _SECRETS[1:20]:
                    client = await stack.enter_async_context(Agent.of(relay, secret))
                    at_host = await carried(client, host, 1, "ann/web")
                    client.send(frame(frames.DATA, 1, 0, bytes(1000)))
                    assert (await host.next(frames.DATA))[2] == at_host
            gate = relay.relay.gate
            await until(lambda: not gate.state().sessions)  # noqa: B023 - the same gate each time
            state = gate.state()
            assert (state.sessions, state.hosts, sum(state.streams.values()), state.queued) == (0, 0, 0, 0)
            await until(lambda: Usage.of(os.getpid()).descriptors <= before)


async def test_the_audit(folder: Path) -> None:
    """The audit counts repeated offers in one entry, with the first and the last time, also over REST."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        ann = (await made(caller, "/admins", handle="ann"))["token"]
        token = (await made(caller, "/services", ann, name="web"))["token"]
        async with Agent.of(relay) as host:
            for n in range(150):
                assert await offers(host, 2 * n + 1, "ann/web", token) == "OFFERED"
                host.send(frame(frames.WITHDRAW, 2 * n + 1))
            assert await offers(host, 1001, "ann/web", token) == "OFFERED"
            for n in range(20):
                async with Agent.of(relay, bytes([n + 50]) * 32) as client:
                    await carried(client, host, 1, "ann/web")
            await relay.relay.authority.repository.audit.write_notes()
        events = (await caller("GET", "/api/v1/audit", ann)).body["events"]
        told = {event["action"]: event for event in events}
        assert len(events) <= 6  # the hour may change during the test
        assert told["host"]["count"] >= 75 and told["host"]["last"] >= told["host"]["at"]
        assert told["service.create"]["count"] == 1 and told["service.create"]["last"] == told["service.create"]["at"]
