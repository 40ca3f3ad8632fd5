"""Servers that can answer in a relay's place, and how each answer is reported."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kdispatch.network import dialer, upgrade
from kdispatch.network.dialer import Dialer
from kdispatch.network.upgrade import Refusal
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.errors import CODES, KdispatchError
from tests.guards.promises import promised
from tests.guards.systems import tasks
from tests.net.black_hole import black_hole

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _server(answer: Answer) -> AsyncIterator[RelayUrl]:
    """A server on a port; after the block, none of its connections and tasks may be left."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
            await reader.read()  # until the agent closes
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.ensure_future(serve(reader, writer)))

    before = tasks()
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield RelayUrl.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with asyncio.timeout(20):
            await asyncio.gather(*running)
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*running), 2)
        await server.wait_closed()
    assert tasks() == before


def _says(answer: bytes, *, then_close: bool = False) -> Answer:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if then_close:
            writer.close()

    return handle


def _http(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def _problem(status: str, code: str, *headers: str) -> bytes:
    body = json.dumps({"code": code, "detail": "What happened."}).encode()
    return _http(status, body, "Content-Type: application/problem+json", *headers)


async def _error(answer: Answer) -> KdispatchError:
    async with _server(answer) as url, asyncio.timeout(20):
        with pytest.raises(KdispatchError) as caught:
            await Dialer(url).upgrade()
    return caught.value


_NOT_A_RELAY = {
    "404 page": _http("404 Not Found", b"<html>none</html>", "Content-Type: text/html"),
    "redirect": _http("302 Found", b"", "Location: https://login.example/"),
    "403 without a problem": _http("403 Forbidden", b'{"code": 7}'),
    "code of nobody": _http("403 Forbidden", b'{"code": "sunspots"}'),
    "json that is no object": _http("403 Forbidden", b'["code"]'),
    "deep json": _http("403 Forbidden", b"[" * 50_000),
    "large page": _http("200 OK", b"x" * 70_000),
    "page of unknown length": b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnone\r\n0\r\n\r\n",
    "length of 5000 digits": b"HTTP/1.1 404 Not Found\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    "wrong accept": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\nSec-WebSocket-Protocol: kdispatch.1\r\n\r\n"
    ),
    "101 without headers": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "garbage": b"\x00\xff\x13garbage\r\n\r\n",
    "head that never ends": b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 3000,
    "text": b"no http here\r\n\r\n",
}


@pytest.mark.parametrize("answer", _NOT_A_RELAY.values(), ids=_NOT_A_RELAY)
async def test_not_a_relay(answer: bytes) -> None:
    """Any other answer is reported as what it is, and its connection is closed."""
    error = await _error(_says(answer))
    assert error.code == "not_a_relay"
    assert "is no kdispatch relay" in error.text


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_log_in_page(version: bytes) -> None:
    """A web page instead of the upgrade mostly comes from a network that wants a log-in, and is reported so."""
    page = _http("200 OK", b"<html>Log in</html>", "Content-Type: text/html")
    error = await _error(_says(page.replace(b"1.1", version)))
    assert error.code == "captive_portal"


async def test_speaks_first() -> None:
    """A server of another protocol that greets first is not a relay."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        writer.close()

    assert (await _error(handle)).code in {"not_a_relay", "relay_unreachable"}


async def test_garbage_then_close() -> None:
    """An answer that is not HTTP and ends is reported as far as it is understood."""
    assert (await _error(_says(b"\x15\x03\x01\x00\x02\x02\x46", then_close=True))).code == "not_a_relay"


async def test_silence_then_close() -> None:
    """A server that takes the request and disconnects is reported as unreachable."""
    error = await _error(_says(b"", then_close=True))
    assert error.code == "relay_unreachable" and "ended before the answer did" in error.text


async def test_silence() -> None:
    """The caller limits the time; a cancelled dial closes its connection."""
    async with _server(_says(b"")) as url:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await Dialer(url).upgrade()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("503 Busy", "relay_unreachable"),
        ("502 Bad Gateway", "relay_unreachable"),
        ("500 Oops", "relay_unreachable"),
        ("408 Late", "relay_unreachable"),
        ("429 Too Many", "rate_limited"),
    ],
)
async def test_passing_trouble(status: str, code: str) -> None:
    """A temporary error of a proxy is not final, and its Retry-After is kept."""
    error = await _error(_says(_http(status, b"<html>later</html>", "Retry-After: 7")))
    assert isinstance(error, Refusal)
    assert (error.code, error.final, error.retry_after) == (code, False, 7.0)


@pytest.mark.parametrize(
    ("value", "after"), [("100000", 300.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-1", 0.0), ("", 0.0)]
)
async def test_odd_retry_after(value: str, after: float) -> None:
    """An invalid Retry-After, or one of days, does not keep an agent away."""
    error = await _error(_says(_http("503 Busy", b"", f"Retry-After: {value}")))
    assert isinstance(error, Refusal) and error.retry_after == after


async def test_retry_after_in_other_digits() -> None:
    """A Retry-After of characters that are digits only in Unicode is ignored without an error."""
    error = await _error(_says(_http("503 Busy").replace(b"\r\n\r\n", b"\r\nRetry-After: \xb2\r\n\r\n")))
    assert isinstance(error, Refusal) and error.retry_after == 0.0


async def test_final_refusal() -> None:
    """The relay's own refusal keeps its code and its text, and is final."""
    error = await _error(_says(_problem("426 Upgrade Required", "version_unsupported")))
    assert isinstance(error, Refusal)
    assert (error.code, error.text, error.final) == ("version_unsupported", "What happened.", True)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (("Retry-After: 7",), "The relay asks to wait 7 s."),
        (("Retry-After: Wed, 21 Oct 2026 07:28:00 GMT",), "The relay does not say how long to wait."),
        ((), "The relay does not say how long to wait."),
    ],
)
async def test_too_many(header: tuple[str, ...], says: str) -> None:
    """The relay's own 429 states how long to wait, or that this is not known."""
    error = await _error(_says(_problem("429 Slow", "rate_limited", *header)))
    assert error.text == f"What happened. {says}"


async def test_a_problem_without_a_text() -> None:
    """A refusal without a sentence of its own has its code's."""
    body = json.dumps({"code": "busy", "detail": None}).encode()
    assert (await _error(_says(_http("503 Busy", body)))).text == CODES["busy"].meaning


async def test_passing_refusal() -> None:
    """The relay's own ``busy`` is not final."""
    error = await _error(_says(_problem("503 Busy", "busy", "Retry-After: 2")))
    assert isinstance(error, Refusal)
    assert (error.code, error.final, error.retry_after) == ("busy", False, 2.0)


def _upgrade(*, subprotocol: str = "kdispatch.1", behind: bytes = b"") -> Answer:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest()).decode()
        head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        head.append(f"Sec-WebSocket-Accept: {accept}")
        if subprotocol:
            head.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        writer.write("\r\n".join([*head, "", ""]).encode() + behind)

    return handle


@pytest.mark.parametrize("subprotocol", ["", "mqtt"])
async def test_other_websocket(subprotocol: str) -> None:
    """A WebSocket server that does not accept our subprotocol is not a relay."""
    assert (await _error(_upgrade(subprotocol=subprotocol))).code == "not_a_relay"


async def test_upgrade() -> None:
    """A relay's upgrade returns the connection, and the data that directly followed it."""
    async with _server(_upgrade(behind=b"early")) as url, asyncio.timeout(20):
        upgraded = await Dialer(url).upgrade()
        assert upgraded.early == b"early"
        assert not upgraded.transport.is_reading()  # until the session takes over
        upgraded.transport.abort()


async def test_closed_port() -> None:
    """A closed port is reported with its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(KdispatchError) as caught:
            await Dialer(RelayUrl.parse(f"http://127.0.0.1:{port}")).upgrade()
    assert caught.value.code == "relay_unreachable"
    assert caught.value.text.startswith(f"127.0.0.1:{port} can't be reached: ")


async def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be resolved is reported as the cause."""

    async def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    with pytest.raises(KdispatchError) as caught:
        await Dialer(RelayUrl.parse("https://relay.invalid")).upgrade()
    assert caught.value.code == "relay_unreachable"
    assert "relay.invalid:443 can't be reached: the name cannot be resolved" in caught.value.text


async def test_no_tls() -> None:
    """A plain server where TLS is expected is not a relay."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with _server(handle) as url, asyncio.timeout(20):
        with pytest.raises(KdispatchError) as caught:
            await Dialer(RelayUrl.parse(f"https://127.0.0.1:{url.port}")).upgrade()
    assert caught.value.code == "not_a_relay"


async def test_a_dial_that_was_given_up_leaves_no_error_behind() -> None:
    """A connection that fails after its handshake was cancelled causes no error."""
    handshake = upgrade.Handshake(RelayUrl.parse("http://127.0.0.1:1"))
    handshake.connection_lost(None)
    assert handshake.done.done()
    del handshake
    gc.collect()  # an exception that was never fetched would be logged now, which fails a test


@pytest.mark.slow
async def test_which_step_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is not accepted, and one on which TLS is not answered, are reported differently."""
    monkeypatch.setattr(dialer, "_STEP", 0.3)

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with _server(silent) as url:
        with pytest.raises(KdispatchError) as caught:
            await Dialer(RelayUrl.parse(f"https://127.0.0.1:{url.port}")).upgrade()
    assert caught.value.code == "relay_unreachable"
    assert "TCP works, but no answer to the TLS handshake within 0.3 s" in caught.value.text
    with black_hole() as port, pytest.raises(KdispatchError) as caught:
        await Dialer(RelayUrl.parse(f"http://127.0.0.2:{port}", insecure_plaintext=True)).upgrade()
    assert caught.value.code == "relay_unreachable"
    assert "no answer from 127.0.0.2 within 0.3 s" in caught.value.text


async def _fails() -> str:
    raise KdispatchError("relay_unreachable", "Away.")


async def _succeeds() -> str:
    await asyncio.sleep(0.05)
    return "there"


@pytest.mark.timed
async def test_urls_begin_when_the_one_before_has_failed() -> None:
    """If an attempt fails, the next one begins at once, and not after the time between two."""
    began = asyncio.get_running_loop().time()
    assert await dialer._first_of([_fails, _succeeds], lambda _: None) == "there"
    assert asyncio.get_running_loop().time() - began < promised(1)


async def test_no_connection_is_left_of_those_that_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of attempts that succeed at once the first in order counts, and the other's connection is closed."""
    monkeypatch.setattr(dialer, "_APART", 0)
    gate = asyncio.Event()

    def attempt(name: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def run() -> str:
            await gate.wait()
            return name

        return run

    let_go: list[str] = []
    asyncio.get_running_loop().call_later(0.05, gate.set)
    assert await dialer._first_of([attempt("one"), attempt("two")], let_go.append) == "one"
    assert let_go == ["two"]


async def test_all_urls_fail() -> None:
    """If no URL works, the error lists the result of each, or the relay's own text if each refuses."""
    with pytest.raises(KdispatchError) as caught:
        await dialer._first_of([_fails, _fails], lambda _: None)
    assert caught.value.text == "Away. Away."

    async def refused() -> str:
        raise Refusal("version_unsupported", "Too old.", final=True)

    with pytest.raises(Refusal):
        await dialer._first_of([refused, refused], lambda _: None)


async def test_given_up_attempts_end() -> None:
    """A cancelled dial leaves no attempt behind."""
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await dialer._first_of([asyncio.Event().wait, asyncio.Event().wait], lambda _: None)
    assert asyncio.all_tasks() == before


def test_which_relay_was_met() -> None:
    """One relay with two URLs is accepted, another relay is refused and left out, and a recreated one is accepted."""
    one, two = RelayUrl.parse("https://one.example"), RelayUrl.parse("https://two.example")
    way = Dialer(one, two)
    way.met(one, "aa")
    way.met(two, "aa")
    way.met(one, "aa")
    way.met(two, "aa")
    with pytest.raises(KdispatchError) as caught:
        way.met(one, "bb")
    assert caught.value.code == "other_relay"
    assert not way.has_choice and way.relay == two
    way.met(two, "bb")  # the relay was recreated; now there is no doubt
    way = Dialer(one, two)
    way.met(one, "aa")
    way.met(one, "bb")
    with pytest.raises(KdispatchError):
        way.met(two, "aa")
    assert way.relay == one


async def test_a_name_is_looked_up_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that has moved to another address is found there at the next try."""
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo
    moved = False

    async def look_up(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        if host != "relay.test":  # uvloop resolves addresses, too
            return await resolve(host, port, *more, **named)
        address = ("127.0.0.1" if moved else "127.0.0.3", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

    monkeypatch.setattr(loop, "getaddrinfo", look_up, raising=False)
    async with _server(_upgrade()) as url, asyncio.timeout(20):
        way = Dialer(RelayUrl.parse(f"http://relay.test:{url.port}", insecure_plaintext=True), no_proxy=True)
        with pytest.raises(KdispatchError) as caught:
            await way.upgrade()
        assert caught.value.code == "relay_unreachable"
        moved = True
        upgraded = await way.upgrade()
        upgraded.transport.abort()


async def test_what_passes_goes_before_what_is_final() -> None:
    """If one URL is only unavailable, another one's final refusal does not end an agent; if all refuse, it does."""

    async def refused() -> str:
        raise Refusal("bad_request", "Stripped.", final=True)

    async def away() -> str:
        raise Refusal("relay_unreachable", "Away.", final=False)

    cases = (([refused, _fails], "Stripped. Away."), ([refused, away], "Away."), ([refused], "Stripped."))
    for attempts, text in cases:
        with pytest.raises(KdispatchError) as caught:
            await dialer._first_of(attempts, lambda _: None)
        assert caught.value.text == text
        assert isinstance(caught.value, Refusal) == (attempts[-1] is not _fails)


async def test_a_location_that_is_no_url() -> None:
    """A redirect to an invalid URL is reported as a redirect."""
    error = await _error(_says(_http("302 Found", b"", "Location: http://[x")))
    assert error.code == "not_a_relay" and "elsewhere" in error.text
