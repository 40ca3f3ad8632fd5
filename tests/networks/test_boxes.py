"""A box's answer in place of the relay's gives one code and one sentence, whichever program asks.

A box here is a few lines: its answers to a plain request, to one with a token, and to an upgrade.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from websockets.utils import accept_key

from kdispatch.doctor.examination import Wishes, examine
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from kdispatch.rest.service_query import ServiceQuery
from kdispatch.settings import Settings
from kdispatch.setup_error import HintedError
from kdispatch.uplink import Uplink
from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.tokens import format_token
from tests.net.harness import Network, Relay
from tests.net.tcp import Tcp, echo, service
from tests.networks.middlebox import Rules, middlebox

pytestmark = pytest.mark.slow

_EXIT: Final = 6
_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_TOKEN: Final = format_token("adm", bytes(32))
_ACCEPT: Final = "{accept}"
#: A relay's own answer to a plain request for the tunnel.
_PLAIN: Final = json.dumps({"code": "bad_request", "detail": ""})
_HTTP2: Final = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"


def _http(status: str, *headers: str, body: str = "", kind: str = "text/html") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return ("\r\n".join(head) + body).encode()


def _problem(status: str, missing: str = "", **members: object) -> bytes:
    told = (f"Kdispatch-Missing: {missing}",) if missing else ()
    return _http(status, *told, body=json.dumps(members), kind="application/problem+json")


def _switching(*headers: str, without: str = "") -> bytes:
    """A 101 answer without one usual header, or with more headers."""
    usual = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": _ACCEPT,
        "Sec-WebSocket-Protocol": "kdispatch.1",
    }
    lines = [f"{name}: {value}" for name, value in usual.items() if name != without]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, *headers, "", ""]).encode()


@dataclass(frozen=True)
class _Box:
    """Answers like a relay, except for an ``upgrade``, or for every request (``all_``); ``None`` closes."""

    upgrade: bytes | None = b""
    all_: bytes | None = b""

    async def __call__(self, tcp: Tcp) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := await tcp.receive()):
                return
            request += data
        answer = self.all_
        if answer == b"":
            answer = self.upgrade if b"websocket" in request.lower() else _http("422 No", body=_PLAIN)
        if answer is not None:
            await tcp.send(answer.replace(_ACCEPT.encode(), _accept(request)))
            if b"close" not in answer:
                await tcp.receive()


def _accept(request: bytes) -> bytes:
    for line in request.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"sec-websocket-key":
            return accept_key(value.strip().decode()).encode()
    return b""


async def _starts(url: str) -> KdispatchError:
    """Return the error of an agent's first start."""
    uplink = Uplink(Dialer(RelayUrl.parse(url)), lambda _: None)
    try:
        with pytest.raises(KdispatchError) as caught:
            await uplink.start(0)
    finally:
        await uplink.stop()
    return caught.value


async def _lists(url: str) -> KdispatchError:
    """Return the error of a command that sends its token."""
    async with RestClient(Dialer(RelayUrl.parse(url)), token=_TOKEN) as rest:
        with pytest.raises(KdispatchError) as caught:
            await rest.services()
    return caught.value


async def _looks_up(url: str) -> KdispatchError:
    """Return the error of an agent's look-up of its service."""
    async with ServiceQuery(Dialer(RelayUrl.parse(url)), _TOKEN) as query:
        with pytest.raises(KdispatchError) as caught:
            await query.service("ann/web")
    return caught.value


async def _examined(url: str) -> tuple[str, str, str]:
    """Return code, text and hint of doctor's first failed check."""
    found = [one async for one in examine(Settings(relay=url), Wishes()) if one.level == "fail"]
    return found[0].code or "", found[0].text, found[0].hint or ""


#: For each box at the upgrade: the code, and words of the message.
_UPGRADES: Final[Mapping[str, tuple[_Box, str, str]]] = {
    **{
        f"{status} page": (
            _Box(_http(status, "Server: box")),
            "not_a_relay",
            f"answers the upgrade by {status[:3]} and text/html in the relay's place (server: box), but lets plain",
        )
        for status in (
            "200 OK", "301 Moved", "302 Found", "307 Elsewhere", "400 Bad Request", "401 No", "403 Forbidden",
            "404 Not Found", "405 Not Allowed", "413 Large", "414 Long", "426 Upgrade Required", "431 Headers",
            "451 Law", "500 Broken", "501 Not Implemented", "502 Bad Gateway", "503 Away", "504 Late", "505 Version",
        )
    },
    "HTTP/1.0": (
        _Box(b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nno close"),
        "not_a_relay",
        "answers the upgrade by 400 and text/plain",
    ),
    "chunked": (
        _Box(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\nContent-Type: text/html\r\n\r\n3\r\n<p>\r\n0\r\n\r\n"),
        "not_a_relay",
        "answers the upgrade by 403 and text/html",
    ),
    "closes": (_Box(None), "relay_unreachable", "Plain requests reach the relay, but an upgrade is not answered"),
    "names Upgrade": (
        _Box(_problem("422 No", code="bad_request", missing="Upgrade, Connection")),
        "not_a_relay",
        "The relay gets the request without its Upgrade header: something on the way takes that out.",
    ),
    "relay of before": (
        _Box(_problem("422 No", code="bad_request", detail="This address takes WebSocket upgrades only.")),
        "not_a_relay",
        "The relay gets the request without its Upgrade header: something on the way takes that out.",
    ),
    "names Connection": (
        _Box(_problem("422 No", code="bad_request", missing="Connection")),
        "not_a_relay",
        "without its Connection header: something on the way takes that out.",
    ),
    "names a key": (
        _Box(_problem("422 No", code="bad_request", missing="Sec-WebSocket-Key, Sec-WebSocket-Version")),
        "not_a_relay",
        "without its Sec-WebSocket-Key and Sec-WebSocket-Version headers: something on the way takes them out.",
    ),
    "names the subprotocol": (
        _Box(_problem("426 No", code="version_unsupported", missing="Sec-WebSocket-Protocol")),
        "not_a_relay",
        "without its Sec-WebSocket-Protocol header",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _UPGRADES)
async def test_an_upgrade_that_a_box_spoils(name: str) -> None:
    """For a spoiled upgrade, agent and doctor give the same code, sentence and hint."""
    box, code, words = _UPGRADES[name]
    async with service(box) as running:
        url = f"http://127.0.0.1:{running.port}"
        error, (found, text, hint) = await _starts(url), await _examined(url)
    assert isinstance(error, HintedError)
    assert (error.code, found) == (code, code) and words in error.text
    assert (error.text, error.hint) == (text, hint)
    assert "let WebSockets to 127.0.0.1:" in hint and "docs/operations.md" in hint
    assert (error.info.hop, error.info.exit) == ("you -> relay", _EXIT)


#: For each 101: words of the message of agent and doctor.
_SWITCHES: Final[Mapping[str, tuple[bytes, str]]] = {
    "without Upgrade": (_switching(without="Upgrade"), "missing Upgrade header"),
    "without Connection": (_switching(without="Connection"), "missing Connection header"),
    "without the proof": (_switching(without="Sec-WebSocket-Accept"), "missing Sec-WebSocket-Accept header"),
    "with another proof": (
        _switching("Sec-WebSocket-Accept: AAAA", without="Sec-WebSocket-Accept"), "invalid Sec-WebSocket-Accept"
    ),
    "without the subprotocol": (_switching(without="Sec-WebSocket-Protocol"), "without Sec-WebSocket-Protocol"),
    "with another subprotocol": (
        _switching("Sec-WebSocket-Protocol: chat", without="Sec-WebSocket-Protocol"), "subprotocol"
    ),
    "with compression": (_switching("Sec-WebSocket-Extensions: permessage-deflate"), "extensions"),
}  # fmt: skip


@pytest.mark.parametrize("name", _SWITCHES)
async def test_an_upgrade_that_a_box_answers(name: str) -> None:
    """A 101 with headers that no relay sends is `not_a_relay`, in the same sentence from agent and doctor."""
    answer, words = _SWITCHES[name]
    async with service(_Box(answer)) as running:
        url = f"http://127.0.0.1:{running.port}"
        error, (found, text, _) = await _starts(url), await _examined(url)
    assert (error.code, found) == ("not_a_relay", "not_a_relay") and words in error.text
    assert error.text == text
    assert (error.info.hop, error.info.exit) == ("you -> relay", _EXIT)


@pytest.mark.parametrize(
    "behind",
    [
        b"\x82\x84abcdabcd",  # masked
        b"\xc2\x04abcd",  # compressed
        b"\x81\x04abcd",  # text
        b"\x82\x04abcd",  # not a kdispatch frame
        b"\x80\x00",  # a continuation without a start
        b"<html>No</html>",
        b"a\r\n\x82\x04abcd",  # chunked
    ],
)
async def test_what_a_box_makes_of_frames(behind: bytes) -> None:
    """Bytes after the upgrade that no relay sends give the same error in agent and doctor."""
    async with service(_Box(_switching() + behind)) as running:
        url = f"http://127.0.0.1:{running.port}"
        error, (found, text, hint) = await _starts(url), await _examined(url)
    assert isinstance(error, HintedError) and "What follows the upgrade can't be read" in error.text
    assert (error.code, error.text, error.hint) == (found, text, hint)
    assert (error.info.hop, error.info.exit) == ("you -> relay", _EXIT)


def _head(size: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {size}\r\n\r\n".encode()


def _away() -> bytes:
    return b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"


#: For each box with one answer for all: the code, and words of the message.
_ALL: Final[Mapping[str, tuple[bytes | None, str, str]]] = {
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1\r\n", "not_a_relay", "does not speak HTTP as expected, but SSH."),
    "tls": (b"\x15\x03\x01\x00\x02\x02\x46", "not_a_relay", "as expected, but TLS (https://)."),
    "http/2": (_HTTP2, "not_a_relay", "as expected, but HTTP/2."),
    "mail": (b"220 mail.example ESMTP\r\n", "not_a_relay", "but what mail and file servers do."),
    "http/3": (b"HTTP/3 400 No\r\n\r\n", "not_a_relay", "does not speak HTTP as expected."),
    "bytes": (b"\x00\x01\x02\x03\x04", "not_a_relay", "does not speak HTTP as expected."),
    "nothing": (None, "relay_unreachable", "can't be reached: the connection ended before the answer did."),
    "half a head": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Ty",
        "relay_unreachable",
        "the connection ended before the answer did.",
    ),
    "half a page": (_head(1000) + b"close", "relay_unreachable", "the connection ended before the answer did."),
    "a large page": (_head(100_000) + bytes(100_000), "captive_portal", "A web page answers instead of a relay (200)."),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2000 + _away(), "relay_unreachable", "away (503)."),
}


@pytest.mark.parametrize("asks", [_starts, _lists, _looks_up])
@pytest.mark.parametrize("name", _ALL)
async def test_what_speaks_another_language(name: str, asks: Callable[[str], Awaitable[KdispatchError]]) -> None:
    """A malformed answer is reported at once, in the same sentence by agents, commands and doctor."""
    answer, code, words = _ALL[name]
    async with service(_Box(all_=answer)) as running:
        url = f"http://127.0.0.1:{running.port}"
        async with asyncio.timeout(20):
            error = await asks(url)
            found, text, _ = await _examined(url)
    assert (error.code, found) == (code, code) and words in error.text
    assert error.text == text


@pytest.mark.parametrize("asks", [_lists, _looks_up])
@pytest.mark.parametrize(
    ("status", "members", "lost"),
    [
        ("401 No", {"code": "token_refused", "missing": "Authorization"}, True),
        ("401 No", {"code": "token_refused", "detail": "This needs a token."}, True),  # an older relay
        ("404 No", {"code": "unknown_service", "missing": "Authorization"}, True),
        ("401 No", {"code": "token_refused", "detail": "The relay does not accept this token."}, False),
        ("404 No", {"code": "unknown_service"}, False),
        ("401 No", {"code": "token_refused", "missing": "Upgrade"}, False),
    ],
)
async def test_a_token_that_does_not_arrive(
    asks: Callable[[str], Awaitable[KdispatchError]], status: str, members: dict[str, str], lost: bool
) -> None:
    """A token that a box removed is reported as lost at that hop, and a refused token as refused."""
    async with service(_Box(all_=_problem(status, **members))) as running:
        error = await asks(f"http://127.0.0.1:{running.port}")
    if lost:
        assert isinstance(error, HintedError) and "did not arrive" in error.text and "whole" not in error.hint
        assert (error.code, error.info.hop, error.info.exit) == ("not_a_relay", "you -> relay", _EXIT)
    else:
        assert error.code == members["code"], error


async def test_no_token_was_shown(shared_relay: Relay) -> None:
    """A program that sent no token does not blame a box when the relay reports the missing header."""
    async with RestClient(Dialer(shared_relay.address)) as rest:
        with pytest.raises(KdispatchError) as caught:
            await rest.services()
    assert caught.value.code == "token_refused"


@pytest.mark.parametrize(
    "rules",
    [Rules(strips=True), Rules(strips_token=True), Rules(adds_origin=True)],
    ids=["upgrade", "token", "origin"],
)
async def test_a_real_relay_behind_a_box(network: Network, rules: Rules) -> None:
    """If a box removes or adds a header, every program names that header, the hop and the status."""
    name = await network.service()
    async with service(echo) as local, middlebox(RelayUrl.parse(network.url).port, rules) as box:
        await network.host(name, local.port)
        network.environment["KDISPATCH_RELAY"] = box.url
        programs = []
        if rules.strips or rules.adds_origin:
            told = "without its Upgrade header: something on the way takes that out"
            programs = [
                network.agent("host", "host", name, "--port", str(local.port)),
                network.agent("connect", "connect", name),
            ]
        if not rules.strips:
            told = "with an Origin header" if rules.adds_origin else "The token did not arrive"
            programs += [network.program("list", _KDISPATCH, "service", "list")]
        for program in programs:
            assert await program.ended() == _EXIT, program.text
            assert told in program.err and "you -> relay" in program.err
            assert CODES["token_refused"].hint not in program.err
        doctor = network.program("doctor", _KDISPATCH, "doctor")
        await doctor.ended()
        assert told in doctor.text


@pytest.mark.parametrize("asks", [_starts, _lists, _looks_up])
@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        ("200 OK", (), "captive_portal"),
        ("301 Moved", ("Location: https://127.0.0.1/",), "not_a_relay"),
        ("302 Found", ("Location: https://portal.example/log-in",), "not_a_relay"),
        ("400 The plain HTTP request was sent to HTTPS port", (), "not_a_relay"),
        ("401 No", ('WWW-Authenticate: Basic realm="edge"',), "not_a_relay"),
        ("403 Forbidden", (), "not_a_relay"),
        ("404 Not Found", (), "not_a_relay"),
        ("407 Who", (), "proxy_auth"),
        ("413 Large", (), "not_a_relay"),
        ("429 Slow", ("Retry-After: 7",), "rate_limited"),
        ("431 Headers", (), "not_a_relay"),
        ("500 Broken", (), "relay_unreachable"),
        ("502 Bad Gateway", (), "relay_unreachable"),
        ("503 Away", ("Retry-After: 7",), "relay_unreachable"),
        ("504 Late", (), "relay_unreachable"),
        ("511 Log In", (), "captive_portal"),
        ("530 A CDN's own", (), "relay_unreachable"),
    ],
)
async def test_what_answers_everything(
    status: str, headers: tuple[str, ...], code: str, asks: Callable[[str], Awaitable[KdispatchError]]
) -> None:
    """A server in the relay's place gets one code, one sentence and one hint, and the error names the server."""
    async with service(_Box(all_=_http(status, "Server: an-edge", *headers, body="<p>No"))) as running:
        url = f"http://127.0.0.1:{running.port}"
        error, (found, text, hint) = await asks(url), await _examined(url)
    assert (error.code, found) == (code, code) and "server: an-edge" in error.text
    assert error.text == text
    assert (error.hint if isinstance(error, HintedError) else error.info.hint) == hint
