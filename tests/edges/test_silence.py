"""How long each server lets a tunnel be silent: with its directive, and by default."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

import pytest
from _pytest.mark import ParameterSet

from tests.edges.asking import UPGRADE, connected, head
from tests.edges.conftest import EdgeOf
from tests.edges.more_servers import Apache, Lighttpd, Nghttpx, Squid, Stunnel, TrafficServer, Varnish
from tests.edges.servers import Edge, Haproxy, Nginx
from tests.net.tcp import Tcp, service

pytestmark = pytest.mark.slow

Mode = Literal["silent", "client", "server"]  # the end that sends
_MODES: Final[tuple[Mode, ...]] = ("silent", "client", "server")
_BEAT: Final = 0.5  # seconds between two messages of an end
_LATE: Final = 8.0  # seconds after its limit within which a server cuts: Traffic Server checks every few seconds
_LONGEST: Final = 960.0  # longest wait for a default, in seconds
_ACCEPT: Final = base64.b64encode(
    hashlib.sha1(b"AAAAAAAAAAAAAAAAAAAAAA==258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
)


@dataclass(frozen=True)
class _Limit:
    """A server's directive on its page, the same with two seconds, and its default.

    ``cut`` are the tunnels that the directive ends, ``default`` the measured seconds without it.
    """

    kind: type[Edge]
    written: str
    short: str
    default: float | None = None
    cut: tuple[Mode, ...] = ("silent",)
    whole: tuple[str, ...] = ()  # the directives, if ``written`` is a part of several
    by_default: tuple[Mode, ...] = ()  # the tunnels that the default ends, if other directives end the rest

    def __str__(self) -> str:
        return f"{self.kind.name} {self.written.split('=')[0].split()[0]}"


_LIMITS: Final = (
    _Limit(Nginx, "proxy_read_timeout    2m;", "proxy_read_timeout 2s;", 60),
    _Limit(Haproxy, "timeout tunnel 2m", "timeout tunnel 2s", 30),
    _Limit(Apache, "Timeout           120", "Timeout           2", 300),
    _Limit(Lighttpd, "server.max-read-idle  = 120", "server.max-read-idle = 2", 60, ("silent", "server")),
    _Limit(
        Lighttpd,
        "server.max-write-idle = 120",
        "server.max-write-idle = 2",
        360,
        ("silent", "client"),
        by_default=("client",),
    ),
    _Limit(
        Nghttpx,
        "end-read-timeout=2m",
        "end-read-timeout=2s",
        60,
        whole=("frontend-read-timeout=2m", "backend-read-timeout=2m"),
    ),
    _Limit(Squid, "read_timeout 2 minutes", "read_timeout 2 seconds", 900),
    _Limit(TrafficServer, "websocket.no_activity_timeout INT 120", "websocket.no_activity_timeout INT 2", 600),
    _Limit(TrafficServer, "websocket.active_timeout INT 0", "websocket.active_timeout INT 2", None, _MODES),
    _Limit(Varnish, "-p pipe_timeout=120", "-p pipe_timeout=2", 60),
    _Limit(Stunnel, "TIMEOUTidle = 120", "TIMEOUTidle = 2"),
)


async def _takes(tcp: Tcp) -> None:
    """Answer an upgrade as a WebSocket, and send messages if the request's path says so."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += (data := await tcp.receive())
        if not data:
            return
    if b"/tunnel" not in received:  # a health check
        await tcp.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return
    protocol = b"Sec-WebSocket-Protocol: kdispatch.1\r\nSec-WebSocket-Accept: " + _ACCEPT
    await tcp.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + protocol)
    await tcp.send(b"\r\n\r\n")
    speaking = asyncio.create_task(_speaks(tcp.send)) if b"?server" in received else None
    try:
        async for _ in tcp.chunks():
            pass
    finally:
        if speaking is not None:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)


async def _speaks(send: Callable[[bytes], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(_BEAT)
        await send(b"\x82\x01x")


async def _lasts(edge: Edge, mode: Mode, most: float) -> float:
    """Return how many seconds a tunnel lasts, at most ``most``."""
    loop = asyncio.get_running_loop()
    async with connected(edge) as (reader, writer):

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        asked = head("GET", f"/api/v1/tunnel?{mode}", *UPGRADE)
        await send(asked.replace(b"Connection: close", b"Connection: Upgrade"))
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        began = loop.time()
        speaking = asyncio.create_task(_speaks(send)) if mode == "client" else None
        try:
            async with asyncio.timeout(most):
                while await reader.read(4096):
                    pass
        except (TimeoutError, ConnectionError, ssl.SSLError):
            pass
        finally:
            if speaking is not None:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
        return min(loop.time() - began, most)


async def _measured(edge: Edge, most: float) -> dict[Mode, float]:
    await edge.start()
    lasted = await asyncio.gather(*(_lasts(edge, mode, most) for mode in _MODES))
    return dict(zip(_MODES, lasted, strict=True))


def _limits() -> list[ParameterSet]:
    """The least expected limit in every run, all in the acceptance run."""
    return [
        pytest.param(limit, id=str(limit), marks=[] if limit.kind is Lighttpd else pytest.mark.accept)
        for limit in _LIMITS
    ]


@pytest.mark.parametrize("limit", _limits())
async def test_directive(limit: _Limit, edge_of: EdgeOf) -> None:
    """The page's directive is the one that cuts a silent tunnel, and it cuts no other tunnel."""
    most = 2 + _LATE
    async with service(_takes) as upstream:
        edge = edge_of(limit.kind, upstream.port, changes={limit.written: limit.short})
        lasted = await _measured(edge, most)
    told = {mode: "cut" if seconds < most else "kept" for mode, seconds in lasted.items()}
    assert told == {mode: "cut" if mode in limit.cut else "kept" for mode in _MODES}, lasted
    assert all(seconds > 1 for seconds in lasted.values()), lasted


@pytest.mark.accept
@pytest.mark.timeout(1200)
async def test_defaults(edge_of: EdgeOf) -> None:
    """Without its directive each server cuts after the seconds in docs/edges.md."""
    waiting = [limit for limit in _LIMITS if limit.default is not None]
    async with service(_takes) as upstream:
        absent = [dict.fromkeys(limit.whole or (limit.written,), "") for limit in waiting]
        edges = [edge_of(limit.kind, upstream.port, changes=one) for limit, one in zip(waiting, absent, strict=True)]
        measured = await asyncio.gather(*(_measured(edge, _LONGEST) for edge in edges))
    for limit, lasted in zip(waiting, measured, strict=True):
        print(f"{limit}: " + ", ".join(f"{mode} {seconds:.0f} s" for mode, seconds in lasted.items()))
        for mode in limit.by_default or limit.cut:
            assert limit.default is not None
            assert limit.default - 1 < lasted[mode] < limit.default + _LATE, (str(limit), lasted)
