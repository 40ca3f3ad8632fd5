"""Threat 8: revoked but still connected."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.guards.promises import promised
from tests.security.site import Agent, Caller, answer, carried, made, offers, opens, site


@pytest.mark.timed
@pytest.mark.parametrize("whose", ["client", "host"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_what_runs_ends(folder: Path, whose: str, where: str) -> None:
    """Revoking the token of either end, at this relay or at another, cuts an active stream."""
    async with (
        site(folder) as relay,
        site(folder) as other,
        Caller.of(relay if where == "here" else other) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin("ann")
        await made(caller, "/services", admin, name="web", access="token")
        tokens = {
            kind: await made(caller, "/tokens", admin, name=kind, **{"for": kind, "service": "web"})
            for kind in ("host", "connect")
        }
        assert await offers(host, 1, "ann/web", tokens["host"]["token"]) == "OFFERED"
        at_host = await carried(client, host, 3, "ann/web", tokens["connect"]["token"])
        client.send(frame(frames.DATA, 3, 0, b"x"))
        assert (await host.next(frames.DATA))[2] == at_host
        taken = tokens["connect" if whose == "client" else "host"]["id"]
        began = time.monotonic()
        assert (await caller("DELETE", f"/api/v1/tokens/{taken}", admin)).status == 204
        told = await asyncio.gather(answer(client, 3), answer(host, at_host))
        assert list(told) == [("revoked" if whose == "client" else "withdrawn"), "revoked"]
        if whose == "host":
            assert not relay.relay.gate.hosts_of("ann/web")
        assert time.monotonic() - began < promised(2)
        client.send(frame(frames.DATA, 3, 1, b"y"))
        client.send(frame(frames.PING))
        await client.next(frames.PONG)
        assert not [one for one in host.frames if one[0] == frames.DATA]


async def test_a_service_offered_twice(folder: Path) -> None:
    """A process that offered a service with two tokens leaves the list once both are revoked."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin("ann")
        await made(caller, "/services", admin, name="web", access="public")
        wish = {"for": "host", "service": "web"}
        tokens = [await made(caller, "/tokens", admin, name=name, **wish) for name in ("a", "b")]
        for number, token in ((1, tokens[0]), (3, tokens[1])):
            assert await offers(host, number, "ann/web", token["token"]) == "OFFERED"
        for number, token, listed in ((1, tokens[0], 1), (3, tokens[1], 0)):
            assert (await caller("DELETE", f"/api/v1/tokens/{token['id']}", admin)).status == 204
            assert await answer(host, number) == "revoked"
            assert len(relay.relay.gate.hosts_of("ann/web")) == listed
        assert await opens(client, 1, "ann/web") != "TRYING"


async def test_a_token_that_expires(folder: Path) -> None:
    """A token that expires cuts its streams without a request from anyone."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin("ann")
        svc = (await made(caller, "/services", admin, name="web", access="token"))["token"]
        cli = await made(caller, "/tokens", admin, name="c", **{"for": "connect", "service": "web", "expires": 60})
        with closing(sqlite3.connect(folder / "relay.db")) as opened, opened:
            opened.execute("UPDATE tokens SET expires_at = ? WHERE token_id = ?", (int(time.time()) + 2, cli["id"]))
        assert await offers(host, 1, "ann/web", svc) == "OFFERED"
        await carried(client, host, 3, "ann/web", cli["token"])
        await asyncio.sleep(1.0)
        assert await answer(client, 3) == "revoked"
