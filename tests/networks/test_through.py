"""Connections through a proxy, and the errors when the proxy makes none."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import re
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

import kdispatch.network.through as through
from kdispatch.network.dialer import Dialer
from kdispatch.network.proxy import Proxy
from kdispatch.network.through import connect_through
from kdispatch.settings import Settings
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError
from tests.guards.promises import promised
from tests.net.black_hole import black_hole
from tests.net.harness import eventually
from tests.net.tcp import Tcp, banner, echo, service, silent, sink, source
from tests.networks.proxies import ESTABLISHED, SaysAndCloses, ScriptedProxy, SocksServer

CREDENTIALS: Final = "me:se%40cret@"
SHOWN: Final = base64.b64encode(b"me:se@cret").decode()


def answer(status: str, *headers: str, page: str = "<p>No.") -> bytes:
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(page)}"]
    return ("\r\n".join(head) + "\r\n\r\n" + page).encode()


BASIC: Final = 'Proxy-Authenticate: Basic realm="a"'
WEB: Final = 'WWW-Authenticate: Basic realm="a"'
DIGEST: Final = 'Proxy-Authenticate: Digest realm="a", nonce="{}", qop="auth", algorithm=SHA-256, stale={}'
CLOSE: Final = "Proxy-Connection: close"


@asynccontextmanager
async def proxied(
    handle: Callable[[Tcp], Awaitable[None]], credentials: str = "", scheme: str = "http"
) -> AsyncIterator[Proxy]:
    async with service(handle) as running:
        yield Proxy.parse(f"{scheme}://{credentials}127.0.0.1:{running.port}", "HTTPS_PROXY")


async def works(proxy: Proxy, host: str = "relay.test", port: int = 443) -> None:
    """Check that the socket carries bytes to the other end and back."""
    async with Tcp(await connect_through(proxy, host, port)) as tcp:
        assert tcp.sock.gettimeout() == 0
        await tcp.send(b"hello")
        assert await tcp.receive_exactly(5) == b"hello"


async def fails(proxy: Proxy) -> KdispatchError:
    """Return the error; neither it nor its causes contain the name or the password."""
    with pytest.raises(KdispatchError) as raised:
        await connect_through(proxy, "relay.test", 443)
    told = "".join(traceback.format_exception(raised.value)).replace(__file__, "")
    for secret in ("se@cret", "se%40cret", SHOWN):
        assert secret not in told
    assert str(proxy) in raised.value.text
    assert "HTTPS_PROXY" in raised.value.text
    return raised.value


async def test_open_proxy() -> None:
    """A proxy without authentication gets one CONNECT with the unchanged name, and no credentials."""
    proxy_program = ScriptedProxy(ESTABLISHED)
    async with proxied(proxy_program, CREDENTIALS) as proxy:
        await works(proxy)
        await works(proxy, "fd00::1", 8443)
    assert [request.split("\r\n")[:2] for request in proxy_program.requests] == [
        ["CONNECT relay.test:443 HTTP/1.1", "Host: relay.test:443"],
        ["CONNECT [fd00::1]:8443 HTTP/1.1", "Host: [fd00::1]:8443"],
    ]
    assert "Authorization" not in "".join(proxy_program.requests)


@pytest.mark.parametrize(
    ("first", "connections"),
    [
        (answer("407 Who", BASIC), [1, 1]),
        (answer("407 Who", BASIC, page=""), [1, 1]),
        (answer("407 Who", BASIC, CLOSE), [1, 2]),
        (answer("407 Who", BASIC, "Connection: close"), [1, 2]),
        (answer("407 Who", BASIC).replace(b"HTTP/1.1", b"HTTP/1.0"), [1, 2]),
        (answer("407 Who", BASIC, page="x" * 70_000), [1, 2]),
        (f"HTTP/1.1 407 Who\r\n{BASIC}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".encode(), [1, 2]),
        (f"HTTP/1.1 407 Who\n{BASIC}\n\n".encode(), [1, 2]),
    ],
    ids=["kept", "no page", "proxy closes", "closes", "old", "long page", "chunked", "bare line feeds"],
)
async def test_basic(first: bytes, connections: list[int]) -> None:
    """The password is sent only on request, on the same connection where possible."""
    proxy_program = ScriptedProxy(first, ESTABLISHED)
    async with proxied(proxy_program, CREDENTIALS) as proxy:
        await works(proxy)
    assert proxy_program.connections == connections
    assert "Authorization" not in proxy_program.requests[0]
    assert f"Proxy-Authorization: Basic {SHOWN}" in proxy_program.requests[1]


async def test_a_kept_connection_that_was_not() -> None:
    """If a proxy closes a connection that it announced as kept, the agent uses a new connection."""

    async def first(tcp: Tcp) -> None:
        await tcp.receive()
        await tcp.send(answer("407 Who", BASIC))

    second = ScriptedProxy(ESTABLISHED)
    waiting: list[Callable[[Tcp], Awaitable[None]]] = [first, second]

    async def either(tcp: Tcp) -> None:
        await waiting.pop(0)(tcp)

    async with proxied(either, CREDENTIALS) as proxy:
        await works(proxy)
    assert SHOWN in second.requests[0]


async def test_digest_and_stale_nonces() -> None:
    """Digest is preferred to Basic, and a stale nonce is replaced."""
    offers = [
        answer("407 Who", BASIC, DIGEST.format(nonce, stale)) for nonce, stale in (("n1", "false"), ("n2", "true"))
    ]
    proxy_program = ScriptedProxy(*offers, ESTABLISHED)
    async with proxied(proxy_program, CREDENTIALS) as proxy:
        await works(proxy)
    nonces = [re.findall('nonce="(n.)"', request) for request in proxy_program.requests]
    assert nonces == [[], ["n1"], ["n2"]]
    assert 'uri="relay.test:443"' in proxy_program.requests[2]
    assert SHOWN not in "".join(proxy_program.requests)


@pytest.mark.parametrize(
    ("answers", "credentials", "code", "words"),
    [
        ([answer("407 Who", BASIC)], "", "proxy_auth", "wants a name and a password"),
        ([answer("407 Who", BASIC)], CREDENTIALS, "proxy_auth", "does not accept the name and password"),
        ([answer("407 Who", DIGEST.format("n", "false"))], CREDENTIALS, "proxy_auth", "does not accept"),
        ([answer("407 Who", DIGEST.format("n", "true"))], CREDENTIALS, "proxy_auth", "does not accept"),
        ([answer("403 Forbidden")], "", "proxy_refused", "relay.test:443 pass: it answers 403 Forbidden."),
        ([answer("405 \x1b[31mNo")], "", "proxy_refused", "it answers 405 ?[31mNo."),
        ([answer("302 Found", "Location: http://portal.example/")], "", "proxy_refused", "answers 302 Found"),
        *(
            ([answer(f"{status} Words")], "", "relay_unreachable", f"can't reach relay.test:443: it answers {status}")
            for status in (404, 408, 410, 429, 500, 502, 503, 504)
        ),
        *(
            ([answer(f"{status} Some Words")], "", "proxy_refused", f"to relay.test:443: it answers {status}")
            for status in (400, 405, 501, 505)
        ),
        ([answer("451 Not Here")], "", "proxy_refused", "does not let relay.test:443 pass: it answers 451"),
        ([answer("511 Log In")], "", "captive_portal", "leads to a page when asked for relay.test:443"),
        # Tinyproxy's answers to a wrong password and to none.
        ([answer("407 Who", BASIC), answer("401 No", WEB)], CREDENTIALS, "proxy_auth", "does not accept the name and"),
        ([answer("401 No", WEB)], CREDENTIALS, "proxy_auth", "does not accept the name and password"),
        ([answer("401 No", WEB)], "", "proxy_auth", "wants a name and a password"),
        ([answer("401 No")], CREDENTIALS, "proxy_auth", "does not accept the name and password"),
        ([ESTABLISHED + b"<html>Log in"], "", "proxy_refused", "a page of its own"),
        ([None], "", "proxy_unreachable", "closed the connection without an answer when asked for relay.test:443"),
        ([b"SSH-2.0-x\r\n"], "", "proxy_unreachable", "is no HTTP proxy"),
        ([b"HTTP/1.1 OK\r\n\r\n"], "", "proxy_unreachable", "is no HTTP proxy"),
        ([b"HTTP/1.1 407 Who\r\n" + b"X: " + b"x" * 40_000], "", "proxy_unreachable", "is no HTTP proxy"),
    ],
)  # fmt: skip
async def test_wrong_answers(answers: list[bytes | None], credentials: str, code: str, words: str) -> None:
    """The error for a refused connection names the proxy, the target and the proxy's answer."""
    proxy_program = ScriptedProxy(*answers)
    async with proxied(proxy_program, credentials) as proxy:
        error = await fails(proxy)
    assert error.code == code
    assert words in error.text
    assert len(proxy_program.requests) <= 4


async def test_a_scheme_that_is_not_spoken() -> None:
    """If a proxy accepts only unsupported schemes, the hint names a workaround, and the proxy gets no credentials."""
    proxy_program = ScriptedProxy(answer("407 Who", "Proxy-Authenticate: Negotiate", "Proxy-Authenticate: NTLM"))
    async with proxied(proxy_program, CREDENTIALS) as proxy:
        error = await fails(proxy)
    assert isinstance(error, SetupError)
    assert error.code == "proxy_auth"
    assert "wants Negotiate or Ntlm" in error.text
    assert "helper" in error.hint
    assert len(proxy_program.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_unreachable(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is down, unresolvable or silent is reported as `proxy_unreachable`, not as an unreachable relay."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = await fails(Proxy.parse(f"{scheme}://{CREDENTIALS}127.0.0.1:{taken.getsockname()[1]}", "HTTPS_PROXY"))
    assert error.code == "proxy_unreachable"
    assert "can't be reached: connection refused" in error.text
    error = await fails(Proxy.parse(f"{scheme}://proxy.invalid", "HTTPS_PROXY"))
    assert error.code == "proxy_unreachable"
    assert "its name cannot be resolved" in error.text
    monkeypatch.setattr(through, "_SECONDS", 0.2)
    async with proxied(silent, CREDENTIALS, scheme) as proxy:
        error = await fails(proxy)
    assert error.code == "proxy_unreachable"
    assert "has not answered within 0.2 s" in error.text


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_dead_first_address(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy whose first address is dead is reached at its second, without a long wait."""
    handle = ScriptedProxy(ESTABLISHED) if scheme == "http" else SocksServer()
    async with service(handle) as running, service(echo) as relay:
        with black_hole(port=running.port):
            loop = asyncio.get_running_loop()
            resolve = loop.getaddrinfo

            async def two(host: Any, *more: Any, **named: Any) -> Any:
                if host != "proxy.test":  # uvloop resolves plain addresses here, too
                    return await resolve(host, *more, **named)
                kinds = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
                return [(*kinds, (address, running.port)) for address in ("127.0.0.2", "127.0.0.1")]

            monkeypatch.setattr(loop, "getaddrinfo", two, raising=False)
            began = loop.time()
            await works(Proxy.parse(f"{scheme}://proxy.test:{running.port}", "--proxy"), "127.0.0.1", relay.port)
            assert loop.time() - began < promised(2)


async def test_the_dialer_goes_by_it() -> None:
    """The dialer uses its settings' proxy, names it when the path behind it fails, and refuses an invalid one."""
    async with service(ScriptedProxy(ESTABLISHED, closing=True)) as running:
        settings = Settings(relay="https://relay.test", proxy=f"http://{CREDENTIALS}127.0.0.1:{running.port}")
        with pytest.raises(KdispatchError) as raised:
            await Dialer.of(settings).upgrade()
    assert raised.value.code == "relay_unreachable"
    assert f"On the way: http://127.0.0.1:{running.port} (--proxy)." in raised.value.text
    assert Dialer.of(dataclasses.replace(settings, no_proxy=True)).proxy(settings.relay_url) is None
    with pytest.raises(SetupError):
        Dialer.of(dataclasses.replace(settings, proxy="https://proxy.test"))


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_cancelled(scheme: str) -> None:
    """Cancelling a connection attempt closes its socket."""
    async with service(sink) as running:
        proxy = Proxy.parse(f"{scheme}://127.0.0.1:{running.port}", "--proxy")
        task = asyncio.create_task(connect_through(proxy, "relay.test", 443))
        await eventually(lambda: running.open, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await eventually(lambda: running.open, 0)


@pytest.mark.parametrize("credentials", ["", CREDENTIALS])
async def test_socks(credentials: str) -> None:
    """A SOCKS5 proxy connects, with a password if it wants one, and resolves the name itself."""
    server = SocksServer(*(["me", "se@cret"] if credentials else []))
    async with service(banner) as relay, proxied(server, credentials, "socks5h") as proxy:
        async with Tcp(await connect_through(proxy, "relay.test", relay.port)) as tcp:
            assert await tcp.receive_exactly(11) == b"220 ready\r\n"
        async with Tcp(await connect_through(proxy, "127.0.0.1", relay.port)) as tcp:
            assert await tcp.receive_exactly(11) == b"220 ready\r\n"
    assert server.asked == [("relay.test", relay.port), ("127.0.0.1", relay.port)]


@pytest.mark.parametrize(
    ("server", "credentials", "code", "words"),
    [
        (SocksServer("me", "other"), "", "proxy_auth", "wants a name and a password"),
        (SocksServer("me", "other"), CREDENTIALS, "proxy_auth", "does not accept the name and password"),
        (SocksServer(reply=1), "", "relay_unreachable", "can't reach relay.test:443: it answers general"),
        (SocksServer(reply=2), "", "proxy_refused", "does not let relay.test:443 pass: it answers connection not"),
        (SocksServer(reply=4), "", "relay_unreachable", "it answers host unreachable"),
        (SocksServer(reply=5), "", "relay_unreachable", "connection refused by destination host"),
        (SocksServer(reply=8), "", "proxy_refused", "it answers address type not supported"),
        (SocksServer(reply=99), "", "proxy_unreachable", "is no SOCKS5 proxy"),
        (source(b"HTTP/1.1 400 Bad Request\r\n\r\n", 28), "", "proxy_unreachable", "is no SOCKS5 proxy"),
        (source(b"", 0), "", "proxy_unreachable", "closed the connection without an answer"),
        *((SocksServer(reply=reply), "", "relay_unreachable", "can't reach relay.test:443") for reply in (3, 6)),
        (SocksServer(reply=7), "", "proxy_refused", "it answers command not supported"),
        (source(b"\x00\x5b\x00\x00", 3), "", "proxy_unreachable", "is no SOCKS5 proxy"),  # SOCKS4
        # "ssh -D" with a target that refuses; a proxy that closes on a wrong password.
        (SaysAndCloses(b"\x05\x00"), "", "relay_unreachable", "can't reach relay.test:443: it closes the connection"),
        (SaysAndCloses(b"\x05\x00", resets=True), "", "relay_unreachable", "it closes the connection without a reply"),
        (SaysAndCloses(b"\x05\x02"), CREDENTIALS, "proxy_auth", "does not accept the name and password"),
        (SaysAndCloses(b"\x05\x02", b"\x01\x00"), CREDENTIALS, "relay_unreachable", "can't reach relay.test:443"),
    ],
)  # fmt: skip
async def test_wrong_answers_of_socks(
    server: Callable[[Tcp], Awaitable[None]], credentials: str, code: str, words: str
) -> None:
    """Refusals of a SOCKS5 proxy, and answers of other servers, have the same codes as with HTTP proxies."""
    async with proxied(server, credentials, "socks5") as proxy:
        error = await fails(proxy)
    assert error.code == code
    assert words in error.text


async def test_a_socks_reply_that_nobody_can_read() -> None:
    """A SOCKS5 reply with an undecodable name is reported as `proxy_unreachable`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\x05\x00")
        await reader.read(100)
        writer.write(b"\x05\x00\x00\x03\x02\xff\xfe\x00\x00")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        proxy = Proxy.parse(f"socks5://127.0.0.1:{server.sockets[0].getsockname()[1]}", "--proxy")
        with pytest.raises(KdispatchError) as caught:
            await connect_through(proxy, "relay.test", 443)
    assert caught.value.code == "proxy_unreachable" and "can't be read" in caught.value.text
