"""The query without aiohttp: what it sends, and that it fails in the same way as the REST client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kdispatch.client import Client
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient, ServiceInfo
from kdispatch.rest.service_query import ServiceQuery
from kdispatch_protocol.errors import KdispatchError
from tests.agent.cli.fake_relay import FakeRelay, new_token

Connections = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SERVICE = json.dumps({"service": "ann/web", "access": "public", "live_hosts": 1}).encode()
MISSING = json.dumps({"code": "unknown_service", "detail": "There is no ann/web."}).encode()


def http(status: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    """An answer with a stated length, unless a header states another."""
    told = any(header.startswith("Transfer-Encoding") for header in headers)
    head = [f"HTTP/{version} {status}", *headers, *([] if told else [f"Content-Length: {len(body)}"])]
    return "\r\n".join([*head, "", ""]).encode() + body


def problem(status: str, code: str, *headers: str) -> bytes:
    body = json.dumps({"code": code, "detail": "What happened.", "request_id": "r1"}).encode()
    return http(status, body, "Content-Type: application/problem+json", *headers)


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:5], body[5:], b"") if part) + b"0\r\n\r\n"


@asynccontextmanager
async def server(serve: Connections, tls: ssl.SSLContext | None = None) -> AsyncIterator[RelayUrl]:
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.ensure_future(handle(reader, writer)))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield RelayUrl.parse(f"http{'s' if tls else ''}://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    finally:
        listening.close()
        await asyncio.wait_for(asyncio.gather(*running), 2)
        await listening.wait_closed()


def says(answer: bytes) -> Connections:
    """Answers once, and ends the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return serve


async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers without an end."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        await writer.drain()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Resets the connection instead of answering."""
    await reader.readuntil(b"\r\n\r\n")
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


async def both(url: RelayUrl) -> list[tuple[str, str]]:
    """How the query ends, and how the REST client does: its code and text, or the service."""
    ends = []
    token = new_token("adm")
    for asker in (ServiceQuery(Dialer(url), token), RestClient(Dialer(url), token=token)):
        async with asker:
            try:
                ends.append(("", repr(await asker.service("ann/web"))))
            except KdispatchError as error:
                ends.append((error.code, error.text))
    return ends


_ANSWERS = {
    "found": (says(http("200 OK", SERVICE)), ""),
    "in chunks": (says(http("200 OK", chunked(SERVICE), "Transfer-Encoding: chunked")), ""),
    "until the end": (says(b"HTTP/1.1 200 OK\r\n\r\n" + SERVICE), ""),
    "old": (says(http("200 OK", SERVICE, version="1.0")), ""),
    "unknown": (says(http("404 Not Found", MISSING)), "unknown_service"),
    "token": (says(problem("401 Unauthorized", "token_refused")), "token_refused"),
    "busy": (says(problem("503 Busy", "busy")), "busy"),
    "storage": (says(problem("503 Busy", "storage_unavailable")), "storage_unavailable"),
    "limited": (says(problem("429 Slowly", "rate_limited", "Retry-After: 17")), "rate_limited"),
    "of tomorrow": (says(problem("403 Forbidden", "of_tomorrow")), "not_permitted"),
    "proxy away": (says(http("503 Away", b"<html>", "Content-Type: text/html")), "relay_unreachable"),
    "old proxy": (says(http("502 Bad Gateway", b"<html>", version="1.0")), "relay_unreachable"),
    "portal": (says(http("511 Log in")), "captive_portal"),
    "web page": (says(http("200 OK", b"<html>It works!</html>", "Content-Type: text/html")), "captive_portal"),
    "no page": (says(http("404 Not Found", b"<html>")), "not_a_relay"),
    "two types": (says(http("418 Tea", b"", "Content-Type: a/b", "Content-Type: c/d")), "not_a_relay"),
    "nothing": (says(http("204 No Content")), "not_a_relay"),
    "other shape": (says(http("200 OK", b'{"service": 7}')), "not_a_relay"),
    "redirect": (says(http("307 Go", b"", "Location: https://x@other.example/api")), "not_a_relay"),
    "garbage": (says(b"SSH-2.0-OpenSSH_9.9\r\n"), "not_a_relay"),
    "bad length": (says(b"HTTP/1.1 200 OK\r\nContent-Length: no\r\n\r\n{}"), "not_a_relay"),
    "long line": (says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000), "not_a_relay"),
    "endless": (floods, "not_a_relay"),
    "silence": (says(b""), "relay_unreachable"),
    "half": (says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "relay_unreachable"),
    "reset": (resets, "relay_unreachable"),
}


@pytest.mark.parametrize("case", _ANSWERS)
async def test_the_rest_clients_outcome(case: str) -> None:
    """Whatever answers, the query ends as the REST client does, with its code and its text."""
    answer, code = _ANSWERS[case]
    async with server(answer) as url:
        query, rest = await both(url)
    assert query == rest
    assert query[0] == code
    if not code:
        assert query[1] == repr(ServiceInfo("ann/web", "public", 1))


async def test_the_same_where_nothing_listens() -> None:
    """A closed port, and a name that does not exist, have the REST client's code and text."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        query, rest = await both(RelayUrl.parse(f"http://127.0.0.1:{taken.getsockname()[1]}"))
        assert query == rest
        assert query[0] == "relay_unreachable" and query[1].endswith("can't be reached: connection refused.")
    query, rest = await both(RelayUrl.parse("https://relay.invalid"))
    assert query == rest
    assert query[0] == "relay_unreachable" and "the name cannot be resolved" in query[1]


@pytest.fixture
def unknown_authority(tmp_path: Path) -> ssl.SSLContext:
    """A server's side with a certificate of an unknown authority."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed: no certificates to test with")
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "pem")]
    subprocess.run(["openssl", *made, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    return context


async def test_the_same_for_tls(unknown_authority: ssl.SSLContext) -> None:
    """An unknown authority, and a server without TLS, have the REST client's code and text."""
    fake = FakeRelay()
    runner = await fake.start(unknown_authority)
    query, rest = await both(RelayUrl.parse(fake.url))
    await runner.cleanup()
    assert query == rest
    assert query[0] == "tls_unknown_ca"

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")

    async with server(plain) as url:
        query, rest = await both(RelayUrl(secure=True, host=url.host, port=url.port))
    assert query == rest
    assert query[0] == "not_a_relay"


async def test_silence_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer within the total time is relay_unreachable, with the time that was waited."""
    monkeypatch.setattr("kdispatch.rest.service_query.TOTAL_SECONDS", 0.1)

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(wait) as url, ServiceQuery(Dialer(url)) as query:
        with pytest.raises(KdispatchError, match=r"relay_unreachable") as caught:
            await query.service("ann/web")
    assert caught.value.text.endswith("can't be reached: no answer within 0.1 s.")


async def test_what_is_asked(relay: FakeRelay) -> None:
    """It sends one request for the service, below the address's prefix, with the token in its header only."""
    token = new_token("adm")
    async with ServiceQuery(Dialer(RelayUrl.parse(f"{relay.url}/below")), token) as query:
        with pytest.raises(KdispatchError):
            await query.service("ann/web")
        with pytest.raises(KdispatchError):
            await query.hosts("ann/web")
        with pytest.raises(KdispatchError, match="bad_name"):
            await query.service("ann/../web")
    assert relay.seen == [
        ("GET", "/below/api/v1/services/ann/web", f"Bearer {token}"),
        ("GET", "/below/api/v1/services/ann/web/hosts", f"Bearer {token}"),
    ]


async def test_one_connection_for_all_questions() -> None:
    """The connection is kept between queries, so that polling needs no further handshake."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(http("200 OK", SERVICE))

    async with server(serve) as url, ServiceQuery(Dialer(url)) as query:
        for _ in range(3):
            assert (await query.service("ann/web")).live_hosts == 1
    assert connections == 1


async def test_a_connection_that_ended_at_rest() -> None:
    """If the server ends an idle connection, even during a query, the query is repeated on a new connection."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http("200 OK", SERVICE))
        if len(requests) > 1:  # the first connection lives until it is asked again, the others end at once
            return
        requests.append(await reader.readuntil(b"\r\n\r\n"))

    async with server(serve) as url, ServiceQuery(Dialer(url)) as query:
        for _ in range(4):
            assert (await query.service("ann/web")).live_hosts == 1
            await asyncio.sleep(0.01)
    assert len(requests) == 5


async def test_unasked_data_ends_the_connection() -> None:
    """Unrequested data is never taken for the next answer."""
    late = http("200 OK", SERVICE.replace(b"1}", b"7}"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http("200 OK", SERVICE))
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(late)
        await reader.read()

    async with server(serve) as url, ServiceQuery(Dialer(url)) as query:
        for _ in range(2):
            assert (await query.service("ann/web")).live_hosts == 1
            await asyncio.sleep(0.05)


async def test_waiting_for_a_host(relay: FakeRelay) -> None:
    """wait_for_host returns once there is a host, and raises no_live_host when the time is over."""
    relay.services["ann/web"] = new_token("svc")
    client = Client(Dialer(RelayUrl.parse(relay.url)))
    with pytest.raises(KdispatchError, match="no_live_host"):
        await client.wait_for_host("ann/web", 0)
    relay.hosts["ann/web"] = [{"host": "0f"}]
    await client.wait_for_host("ann/web", 0)
    with pytest.raises(KdispatchError, match="unknown_service"):
        await client.wait_for_host("ann/none", 5)
    await client.stop()


@pytest.mark.slow
def test_a_client_loads_no_aiohttp() -> None:
    """A waiting client does not load aiohttp."""
    code = (
        "import asyncio, sys\nfrom kdispatch.client import Client\n"
        "from kdispatch.network.dialer import Dialer\nfrom kdispatch.relay_url import RelayUrl\n"
        "async def main():\n"
        "    try: await Client(Dialer(RelayUrl.parse('http://127.0.0.1:1'))).wait_for_host('ann/web', 0)\n"
        "    except Exception as error: print(error.code, 'aiohttp' in sys.modules)\n"
        "asyncio.run(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("relay_unreachable False\n", "")
