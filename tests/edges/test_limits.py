"""What a server in front of a relay keeps from it, and what it tells it."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from kdispatch_relay.sources import forwarded_source, networks
from tests.edges.asking import ask, head, recorder
from tests.edges.conftest import EdgeOf
from tests.edges.servers import EDGES, Caddy, Edge, Haproxy, Nginx

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", EDGES, ids=lambda kind: kind.name)]

_FORGED: Final = ("X-Forwarded-For: 127.0.0.9", "X-Forwarded-For: 192.0.2.7")
#: What is in each line of a log of requests.
_LOGGED: Final[dict[type[Edge], str]] = {Caddy: "http.log.access", Nginx: "127.0.0.1 [", Haproxy: " kdispatch/relay "}
#: Ten times as quick as what operators are told to write.
_DEADLINES: Final[dict[type[Edge], dict[str, str]]] = {
    Caddy: {"read_header 10s": "read_header 1s"},
    Nginx: {"client_header_timeout 10s": "client_header_timeout 1s"},
    Haproxy: {"timeout http-request 10s": "timeout http-request 1s"},
}


def test_configuration_is_valid(kind: type[Edge], edge_of: EdgeOf) -> None:
    """The program takes the configuration as it is, and has no complaint of it."""
    said = edge_of(kind, 8443).checked().lower()
    assert "warn" not in said.replace('"level":"warn","msg":"', "") and "not formatted" not in said, said


async def test_what_reaches_the_relay(kind: type[Edge], edge_of: EdgeOf) -> None:
    """/metrics and large bodies do not, half a header is cut off, and where a request comes from can't be forged.

    What is logged of a request has no query.
    """
    async with recorder() as upstream:
        edge = edge_of(kind, upstream.port, changes=_DEADLINES[kind], talkative=True)
        await edge.start()
        half = asyncio.create_task(ask(edge, b"GET /api/v1/whoami HTTP/1.1\r\nHost: localhost\r\nAuthorization: B"))

        for path in ("/metrics", "/metrics/", "/metrics/x", "/%6detrics", "//metrics", "/metrics?x=1"):
            reply = await ask(edge, head("GET", path))
            assert (reply.status, upstream.heads) == (404, []), path
        large = await ask(edge, head("POST", "/api/v1/admins", "Content-Length: 70000"), b"x" * 70_000)
        assert (large.status, upstream.most_body <= 65_536) == (413, True)

        asked = head("GET", "/api/v1/whoami?x=%2F", *_FORGED, "Origin: https://a.example")
        assert (await ask(edge, asked, source="127.0.0.2")).status == 200
        assert upstream.heads[-1].startswith("GET /api/v1/whoami?x=%2F HTTP/1.1\r\n")
        forwarded = upstream.headers("X-Forwarded-For")
        assert forwarded == ["127.0.0.2"]
        assert forwarded_source("127.0.0.1", forwarded, networks("127.0.0.1")) == "127.0.0.2"
        assert upstream.headers("X-Forwarded-Proto") == ["https"]
        assert upstream.headers("Host") == ["localhost"]
        assert upstream.headers("Origin") == ["https://a.example"]
        body = await ask(edge, head("POST", "/api/v1/admins", "Content-Length: 65536"), b"x" * 65_536)
        assert (body.status, upstream.most_body) == (200, 65_536)

        assert 0.5 < (await half).seconds < 5
        assert not any("GET /api/v1/whoami HTTP" in request for request in upstream.heads)
        logged = [line for line in "\n".join(edge.logs.values()).splitlines() if _LOGGED[kind] in line]
        assert any("/api/v1/whoami" in line for line in logged)
        assert not [line for line in logged if "?x=" in line or "%2F" in line]
