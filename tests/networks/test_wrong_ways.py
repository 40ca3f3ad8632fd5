"""Obstacles to an agent's start, on the path or in the relay's place: code, hop, hint and status are right, in time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from kdispatch.network.answers import _OPERATOR
from kdispatch_protocol.errors import CODES
from kdispatch_protocol.tokens import format_token
from tests.net.harness import Network
from tests.net.tcp import service
from tests.networks.proxies import ESTABLISHED, ScriptedProxy
from tests.networks.site import PASSWORD, USER, Authority, Caddy, Certificate, free_port
from tests.networks.ways import CREDENTIALS, Park, no_proxy

pytestmark = pytest.mark.slow

_SECONDS: Final = 20.0
_EXIT: Final = 6
_PAGE: Final = "<html><title>No</title></html>"


@dataclass(frozen=True)
class Place:
    """What a case needs: its folder, the CA that its agents trust, and the running programs."""

    folder: Path
    authority: Authority
    park: Park


@dataclass(frozen=True)
class Wrong:
    """A relay's URL, and the proxy on the path to it, if any."""

    url: str
    proxy: str = ""


Case = Callable[[Place], AbstractAsyncContextManager[Wrong]]


def _password_of(scheme: str) -> Case:
    @asynccontextmanager
    async def case(place: Place) -> AsyncIterator[Wrong]:
        squid = await place.park.squid("digest" if scheme == "digest" else "basic")
        credentials = CREDENTIALS.replace("c%40nary", "c%40nary-and-wrong")
        assert credentials != CREDENTIALS
        yield Wrong("https://relay.test", f"http://{credentials}127.0.0.1:{squid.port}")

    return case


@asynccontextmanager
async def _no_password(place: Place) -> AsyncIterator[Wrong]:
    yield Wrong("https://relay.test", f"http://127.0.0.1:{(await place.park.squid('digest')).port}")


@asynccontextmanager
async def _forbidden(place: Place) -> AsyncIterator[Wrong]:
    squid = await place.park.squid("digest")
    yield Wrong("https://refused.test", f"http://{CREDENTIALS}127.0.0.1:{squid.port}")


@asynccontextmanager
async def _proxy_down(place: Place) -> AsyncIterator[Wrong]:
    yield Wrong("https://relay.test", f"http://{CREDENTIALS}127.0.0.1:{free_port()}")


@asynccontextmanager
async def _relay_down(place: Place) -> AsyncIterator[Wrong]:
    squid = await place.park.squid("digest")
    yield Wrong(f"https://relay.test:{free_port()}", f"http://{CREDENTIALS}127.0.0.1:{squid.port}")


def _scripted(*answers: bytes | None, closing: bool = False) -> Case:
    @asynccontextmanager
    async def case(place: Place) -> AsyncIterator[Wrong]:
        async with service(ScriptedProxy(*answers, closing=closing)) as running:
            yield Wrong("https://relay.test", f"http://{CREDENTIALS}127.0.0.1:{running.port}")

    return case


def _edge(status: int, certificate: Callable[[Place], Certificate] | None = None) -> Case:
    """The real Caddy answers with this status, and with a valid certificate or the given one."""

    @asynccontextmanager
    async def case(place: Place) -> AsyncIterator[Wrong]:
        right = place.authority.certificate("127.0.0.1")
        caddy = Caddy(place.folder, certificate(place) if certificate else right)
        try:
            await caddy.answering(status, _PAGE)
            yield Wrong(f"https://127.0.0.1:{caddy.port}")
        finally:
            caddy.stop()

    return case


def _unknown_ca(place: Place) -> Certificate:
    (place.folder / "other").mkdir()
    return Authority(place.folder / "other").certificate("127.0.0.1")


def _wrong_host(place: Place) -> Certificate:
    return place.authority.certificate("other.example.org")


def _expired(place: Place) -> Certificate:
    return place.authority.certificate("127.0.0.1", since_days=-3, for_days=2)


def _not_yet_valid(place: Place) -> Certificate:
    return place.authority.certificate("127.0.0.1", since_days=1)


#: For each case: the obstacle, the code, and words of the message.
_CASES: Final[dict[str, tuple[Case, str, str]]] = {
    "wrong digest password": (_password_of("digest"), "proxy_auth", "does not accept the name and password"),
    "wrong basic password": (_password_of("basic"), "proxy_auth", "does not accept the name and password"),
    "no password": (_no_password, "proxy_auth", "wants a name and a password"),
    "proxy down": (_proxy_down, "proxy_unreachable", "connection refused"),
    "proxy says 403": (_forbidden, "proxy_refused", "does not let refused.test:443 pass: it answers 403 Forbidden"),
    "proxy closes": (_scripted(None), "proxy_unreachable", "closed the connection without an answer"),
    "proxy closes after CONNECT": (
        _scripted(ESTABLISHED, closing=True),
        "relay_unreachable",
        "On the way: http://127.",
    ),
    "relay down behind a proxy": (_relay_down, "relay_unreachable", "it answers 503 Service Unavailable"),
    "unknown CA": (_edge(200, _unknown_ca), "tls_unknown_ca", ""),
    "wrong host": (_edge(200, _wrong_host), "tls_wrong_host", ""),
    "expired": (_edge(200, _expired), "tls_expired", ""),
    "not yet valid": (_edge(200, _not_yet_valid), "tls_not_yet_valid", ""),
    "captive portal": (_edge(200), "captive_portal", "A web page answers instead of a relay (200)"),
    "maintenance page": (_edge(503), "relay_unreachable", "reports that the relay is away (503)"),
    "page of an edge": (_edge(401), "not_a_relay", "it answers with status 401 and text/html"),
}


@pytest.mark.accept
@pytest.mark.parametrize("name", _CASES)
async def test_start(tmp_path: Path, park: Park, authority: Authority, name: str) -> None:
    """Host and client end with the obstacle's code, hop and hint and with status 6, and print no password."""
    case, code, words = _CASES[name]
    network = Network(tmp_path, "", format_token("svc", bytes(32)))
    network.environment |= no_proxy() | {"SSL_CERT_FILE": str(authority.file), "KDISPATCH_DEBUG": "1"}
    with socket.create_server(("127.0.0.1", 0)) as local:
        port = str(local.getsockname()[1])
        async with case(Place(tmp_path, authority, park)) as wrong:
            network.environment |= {"KDISPATCH_RELAY": wrong.url, "HTTPS_PROXY": wrong.proxy}
            try:
                began = time.monotonic()
                agents = [network.agent("connect", "connect", "ann/web")]
                agents.append(network.agent("host", "host", "ann/web", "--port", port))
                statuses = await asyncio.gather(*(agent.ended() for agent in agents))
                took = time.monotonic() - began
            finally:
                network.stop()
    for agent, status in zip(agents, statuses, strict=True):
        lines = agent.err.splitlines()
        where = lines.index("  where: you -> relay")  # a line about waiting may come before
        first, hint = lines[where - 1], lines[where + 1]
        assert status == _EXIT, agent.err
        assert f"[{code}]" in first
        assert words in first
        assert hint in {f"  try:   {CODES[code].hint}", f"  try:   {_OPERATOR}"}
        for secret in (USER, PASSWORD, CREDENTIALS.partition(":")[2][:-1], "c%40nary", "c@nary"):
            assert secret not in agent.text
    print(f"{name}: {first} in {took:.1f} s")
    assert took < _SECONDS
