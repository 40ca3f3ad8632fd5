"""What a server in front of a relay withholds from it, and what it passes on."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from kdispatch_relay.sources import forwarded_source, networks
from tests.edges.asking import Recorder, ask, head, recorder
from tests.edges.conftest import EdgeOf
from tests.edges.more_servers import MORE, Apache, Lighttpd, Nghttpx, Squid, Stunnel, TrafficServer, Varnish
from tests.edges.servers import EDGES, Caddy, Edge, Haproxy, Nginx
from tests.net.harness import Relay, eventually

_CHECKED: Final = [kind for kind in (*EDGES, *MORE) if kind not in {Nghttpx, Stunnel}]  # these have no such option
_SPEAKING: Final = [kind for kind in (*EDGES, *MORE) if kind is not Stunnel]  # stunnel passes bytes through

pytestmark = pytest.mark.slow

_FORGED: Final = ("X-Forwarded-For: 127.0.0.9", "X-Forwarded-For: 192.0.2.7")
#: A header that asks a server to remove others; the relay must not depend on those.
_ONE_HOP: Final = "Connection: X-Forwarded-For, X-Forwarded-Proto, Via"
#: Text that marks a line as an entry of the request log.
_LOGGED: Final[dict[type[Edge], str]] = {Caddy: "http.log.access", Haproxy: " kdispatch/relay "}
#: Deadlines of a tenth of those recommended to operators.
_DEADLINES: Final[dict[type[Edge], dict[str, str]]] = {
    Caddy: {"read_header 10s": "read_header 1s"},
    Nginx: {"client_header_timeout 10s": "client_header_timeout 1s"},
    Haproxy: {"timeout http-request 10s": "timeout http-request 1s"},
    Apache: {"header=10": "header=1"},
    Lighttpd: {"max-read-idle  = 120": "max-read-idle  = 1"},
    Nghttpx: {"frontend-read-timeout=2m": "frontend-read-timeout=1s"},
    Squid: {"_timeout 10 seconds": "_timeout 3 seconds"},
    TrafficServer: {"activity_timeout INT 10": "activity_timeout INT 1", "timeout_in INT 10": "timeout_in INT 1"},
    Varnish: {"timeout_idle=10": "timeout_idle=1"},
}


@pytest.mark.parametrize("kind", _CHECKED, ids=lambda kind: kind.name)
def test_configuration_is_valid(kind: type[Edge], edge_of: EdgeOf) -> None:
    """The program accepts the page's configuration unchanged, and without a warning."""
    said = edge_of(kind, 8443).checked().lower()
    assert "warn" not in said.replace('"level":"warn","msg":"', "") and "not formatted" not in said, said


@pytest.mark.parametrize("kind", _SPEAKING, ids=lambda kind: kind.name)
async def test_what_reaches_the_relay(kind: type[Edge], edge_of: EdgeOf) -> None:
    """/metrics and large bodies do not reach the relay, a partial head is cut off, and a source can't be forged.

    The request log has no query strings.
    """
    async with recorder() as upstream:
        edge = edge_of(kind, upstream.port, changes=_DEADLINES[kind], talkative=True)
        await edge.start()
        half = asyncio.create_task(ask(edge, b"GET /api/v1/whoami HTTP/1.1\r\nHost: localhost\r\nAuthorization: B"))

        if kind is not Nghttpx:  # nghttpx leaves that to the relay
            await _refuses(edge, upstream)
        for method in ("PUT", "PATCH", "DELETE"):
            changing = head(method, "/api/v1/services/a/b", "Content-Length: 2") + b"{}"
            assert (await ask(edge, changing, source="127.0.0.2")).status == 200
            assert upstream.heads.pop().startswith(f"{method} /api/v1/services/a/b HTTP/1.1\r\n")
        asked = head("GET", "/api/v1/whoami?x=%2F", *_FORGED, "Origin: https://a.example")
        assert (await ask(edge, asked, source="127.0.0.2")).status == 200
        assert upstream.heads[-1].startswith("GET /api/v1/whoami?x=%2F HTTP/1.1\r\n")
        forwarded = upstream.headers("X-Forwarded-For")
        assert forwarded == ["127.0.0.2"]
        assert forwarded_source("127.0.0.1", forwarded, networks("127.0.0.1")) == "127.0.0.2"
        assert upstream.headers("X-Forwarded-Proto") == ["https"]
        assert upstream.headers("Host") == ["localhost"]
        assert upstream.headers("Origin") == ["https://a.example"]
        # Varnish refuses this request.
        sly = await ask(edge, head("GET", "/api/v1/whoami?sly", _ONE_HOP), source="127.0.0.2")
        assert sly.status == 400 or upstream.headers("X-Forwarded-For") == ["127.0.0.2"], upstream.heads[-1]
        body = await ask(edge, head("POST", "/api/v1/admins", "Content-Length: 65536"), b"x" * 65_536)
        assert (body.status, upstream.most_body) == (200, 65_536)

        assert 0.5 < (await half).seconds < 8  # Traffic Server checks every 5 s
        assert not any("GET /api/v1/whoami HTTP" in request for request in upstream.heads)
        await eventually(lambda: any("/api/v1/whoami" in line for line in _logged(edge)), expected=True)
        assert not [line for line in _logged(edge) if "?x=" in line or "%2F" in line]


async def _refuses(edge: Edge, upstream: Recorder) -> None:
    for path in ("/metrics", "/metrics/", "/metrics/x", "/%6detrics", "//metrics", "/metrics?x=1"):
        reply = await ask(edge, head("GET", path))
        assert (reply.status, upstream.heads) == (404, []), path
    large = await ask(edge, head("POST", "/api/v1/admins", "Content-Length: 70000"), b"x" * 70_000)
    # Varnish answers and closes without reading the body, so its answer may be lost.
    assert large.status in ({413, 0} if isinstance(edge, Varnish) else {413})
    assert upstream.most_body <= 65_536


def _logged(edge: Edge) -> list[str]:
    """The lines of its request log."""
    mark = _LOGGED.get(type(edge), "127.0.0.2 ")
    return [line for line in "\n".join(edge.logs.values()).splitlines() if mark in line]


@pytest.mark.parametrize("kind", [Stunnel])
async def test_what_passes_bytes_on(kind: type[Edge], shared_relay: Relay, edge_of: EdgeOf) -> None:
    """Behind stunnel alone the relay takes every caller for its own machine and shows its state (docs/edges.md)."""
    edge = edge_of(kind, shared_relay.address.port)
    await edge.start()
    from_afar = head("GET", "/api/v1/relay/state").replace(b"localhost", b"127.0.0.1")
    assert (await ask(edge, from_afar, source="127.0.0.2")).status == 200
