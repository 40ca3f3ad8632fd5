"""Threat 11: a forged X-Forwarded-For."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.edges.asking import ask, head
from tests.edges.conftest import EdgeOf
from tests.edges.servers import Caddy
from tests.security.site import Caller, site

_FORGED = "203.0.113.66"


async def _source_of(caller: Caller, admin: str) -> str:
    """The source in the newest audit entry."""
    events = (await caller("GET", "/api/v1/audit?limit=1", admin)).body["events"]
    return str(events[0]["source"])


async def test_direct(folder: Path) -> None:
    """For a caller that is not a trusted proxy, the source is the connection's address, whatever its headers say."""
    async with site(folder, trusted_proxy="192.0.2.0/24") as relay, Caller.of(relay, "127.0.0.9") as caller:
        admin = await caller.admin()
        forged = {"X-Forwarded-For": f"{_FORGED}, 192.0.2.1", "X-Real-IP": _FORGED, "Forwarded": f"for={_FORGED}"}
        made = await caller("POST", "/api/v1/services", admin, json={"name": "web"}, headers=forged)
        assert made.status == 201
        assert await _source_of(caller, admin) == "127.0.0.9"


@pytest.mark.parametrize(
    ("forwarded", "source"),
    [
        (f"{_FORGED}, 198.51.100.7", "198.51.100.7"),
        (f"{_FORGED}, 198.51.100.7, 192.0.2.1", "198.51.100.7"),
        (f"127.0.0.1, {_FORGED}, 198.51.100.7", "198.51.100.7"),
        ("nonsense", "127.0.0.1"),
        (f"{_FORGED}, nonsense", "127.0.0.1"),
    ],
)
async def test_behind_a_trusted_proxy(folder: Path, forwarded: str, source: str) -> None:
    """Behind a trusted proxy, the source is the rightmost hop that is not itself a trusted proxy."""
    async with site(folder, trusted_proxy="127.0.0.1,192.0.2.0/24") as relay, Caller.of(relay) as caller:
        admin = await caller.admin()
        headers = {"X-Forwarded-For": forwarded}
        assert (await caller("POST", "/api/v1/services", admin, json={"name": "web"}, headers=headers)).status == 201
        assert await _source_of(caller, admin) == source


@pytest.mark.slow
async def test_through_caddy(folder: Path, edge_of: EdgeOf) -> None:
    """Behind the project's Caddyfile a forged header has no effect: the source is the address connected to Caddy."""
    async with site(folder, trusted_proxy="127.0.0.1") as relay, Caller.of(relay) as caller:
        admin = await caller.admin()
        edge = edge_of(Caddy, relay.port)
        await edge.start()
        body = json.dumps({"name": "web"}).encode()
        lines = [f"Authorization: Bearer {admin}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"X-Forwarded-For: {_FORGED}", f"X-Real-IP: {_FORGED}"]
        reply = await ask(edge, head("POST", "/api/v1/services", *lines) + body, source="127.0.0.9")
        assert reply.status == 201, reply.text
        assert await _source_of(caller, admin) == "127.0.0.9"
