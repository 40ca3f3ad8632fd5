"""A relay's entrance on real sockets: what is refused, at the cost of one count, and that others do not wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_relay.door.listener import Listener
from kdispatch_relay.gate.gate import Gate
from kdispatch_relay.server import RunningRelay, running_relay
from kdispatch_relay.settings import RelaySettings
from tests.aio.twin import until
from tests.core.wire import ws_frame
from tests.relay.support import relay_api
from tests.relay.test_gate import _UPGRADE, _Agent, _request

SHORT = Limits(hello=0.3)
NAME = "relay.example.org"
HEAD = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(autouse=True)
def database(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "relay.db")


@asynccontextmanager
async def relay_with(file: Path, limits: Limits = SHORT, **settings: Any) -> AsyncIterator[RunningRelay]:
    made = RelaySettings(**{"listen": "127.0.0.1:0", "database": str(file / "relay.db"), **settings})
    async with running_relay(made, lambda authority: Gate(authority, limits=limits), limits=limits) as relay:
        yield relay


class Visitor:
    """A connection driven by the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def of(cls, port: int) -> AsyncIterator[Visitor]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def ask(self, sent: bytes) -> bytes:
        """Send the request; returns the head of the answer, after its body was read."""
        self.writer.write(sent)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        await self.reader.readexactly(int(length or 0))
        return head

    async def dribble(self, sent: bytes, pause: float) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in sent:
                self.writer.write(bytes([byte]))
                await asyncio.sleep(pause)

    async def ended(self) -> float:
        """Wait until the other end has closed it; returns the seconds."""
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass
        return asyncio.get_running_loop().time() - began


# --- the deadline -------------------------------------------------------------------------------------

_LATE = {
    "silent": (b"", b""),
    "half a line": (b"", b"GET /api/v1/tun"),
    "half a header": (b"", HEAD),
    "dribbled header": (b"", HEAD + b"X: " + b"x" * 1000),
    "dribbled second header": (HEAD + b"\r\n", HEAD + b"X: " + b"x" * 1000),
    "upgrade without HELLO": (_request(_UPGRADE), b""),
    "dribbled HELLO": (_request(_UPGRADE), ws_frame(0x82, frame(frames.HELLO, payload=b"{" + b" " * 999), masked=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", _LATE)
async def test_one_deadline(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """A connection that shows nothing useful in time is closed and counted, without a line in the log."""
    first, rest = _LATE[kind]
    async with relay_with(tmp_path) as relay, Visitor.of(relay.port) as visitor:
        if first:
            assert (await visitor.ask(first)).startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 101 "))
        dribbling = asyncio.create_task(visitor.dribble(rest, 0.02))
        took = await visitor.ended()
        await dribbling if not rest else dribbling.cancel()
        assert 0.15 < took < 1.5
        assert relay.arrivals.refused == {"timed_out": 1}
        assert (len(relay.arrivals), relay.gate.state().sessions, relay.gate.state().cuts) == (0, 0, {})
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "half a hello"])
async def test_one_deadline_with_tls(tmp_path: Path, certificate: tuple[Path, Path], sent: bytes) -> None:
    """TLS takes part of the same time."""
    async with (
        relay_with(tmp_path, tls_cert=certificate[0], tls_key=certificate[1]) as relay,
        Visitor.of(relay.port) as visitor,
    ):
        visitor.writer.write(sent)
        assert 0.15 < await visitor.ended() < 1.5
        await until(lambda: len(relay.arrivals) == 0)
        await asyncio.sleep(0.05)
        assert relay.arrivals.refused == {"timed_out": 1}


@pytest.mark.slow
async def test_tls_and_upgrade_have_one_deadline(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """The time that TLS took is missing for the HELLO."""
    async with (
        relay_with(tmp_path, Limits(hello=0.6), tls_cert=certificate[0], tls_key=certificate[1]) as relay,
        Visitor.of(relay.port) as visitor,
    ):
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.35)
        await visitor.writer.start_tls(ssl.create_default_context(cafile=certificate[0]), server_hostname="127.0.0.1")
        assert (await visitor.ask(_request(_UPGRADE))).startswith(b"HTTP/1.1 101 ")
        await visitor.ended()
        assert 0.5 < asyncio.get_running_loop().time() - began < 1.0


async def test_what_is_no_tls(tmp_path: Path, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Plain HTTP to a port with TLS is disconnected at once, and counted."""
    async with (
        relay_with(tmp_path, tls_cert=certificate[0], tls_key=certificate[1]) as relay,
        Visitor.of(relay.port) as visitor,
    ):
        visitor.writer.write(HEAD + b"\r\n")
        await visitor.ended()
        await until(lambda: len(relay.arrivals) == 0)
        assert relay.arrivals.refused == {"bad_request": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.slow
async def test_who_has_been_answered_may_rest(tmp_path: Path) -> None:
    """An idle connection outlives the deadline and is closed when it is idle for too long; a session stays."""
    async with (
        relay_with(tmp_path, Limits(hello=0.1, keep_alive=0.5)) as relay,
        Visitor.of(relay.port) as idle,
        _Agent.of(relay) as agent,
    ):
        await idle.ask(HEAD + b"\r\n")
        await asyncio.sleep(0.25)
        assert (await idle.ask(HEAD + b"\r\n")).startswith(b"HTTP/1.1 200 ")
        assert 0.3 < await idle.ended() < 2
        agent.send(frame(frames.PING, 0, 7))
        await agent.next(frames.PONG)
        assert (relay.arrivals.refused, len(relay.arrivals)) == ({}, 0)


# --- the caps -------------------------------------------------------------------------------------------


async def test_too_many(tmp_path: Path) -> None:
    """When connections without a HELLO are too many, the one that waited longest makes room for an honest agent."""
    async with relay_with(tmp_path, Limits(arrivals=3)) as relay, contextlib.AsyncExitStack() as stack:
        silent = []
        for _ in range(3):
            silent.append(await stack.enter_async_context(Visitor.of(relay.port)))
            await until(lambda: len(relay.arrivals) == len(silent))
        for secret in (b"\x11" * 32, b"\x22" * 32):
            await stack.enter_async_context(_Agent.of(relay, secret))
        await silent[0].ended()
        assert relay.arrivals.refused == {"busy": 1}
        assert (relay.gate.state().sessions, len(relay.arrivals)) == (2, 2)


@pytest.mark.slow
async def test_too_many_in_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """A connection that has not finished TLS makes room as well."""
    files = {"tls_cert": certificate[0], "tls_key": certificate[1]}
    trust = ssl.create_default_context(cafile=certificate[0])
    async with (
        relay_with(tmp_path, Limits(arrivals=1), **files) as relay,
        Visitor.of(relay.port) as silent,
        aiohttp.ClientSession(relay.url) as http,
    ):
        await until(lambda: len(relay.arrivals) == 1)
        async with http.get("/healthz", ssl=trust) as answer:
            assert answer.status == 200
        assert await silent.ended() < 1
        assert relay.arrivals.refused == {"busy": 1}


@pytest.mark.slow
async def test_too_many_of_one_source(tmp_path: Path) -> None:
    """Behind a trusted proxy each source has its own cap and is told so, and other sources notice nothing."""
    async with (
        relay_with(tmp_path, Limits(arrivals_source=2), trusted_proxy="127.0.0.1") as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        answers = []
        for source in ("198.51.100.7",) * 3 + ("203.0.113.9", "2001:db8::1", "2001:db8::2", "2001:db8::3"):
            visitor = await stack.enter_async_context(Visitor.of(relay.port))
            head = await visitor.ask(_request({**_UPGRADE, "X-Forwarded-For": f"203.0.113.9, {source}"}))
            answers.append(head[9:12])
        assert answers == [b"101", b"101", b"503", b"101", b"101", b"101", b"503"]
        assert b"retry-after: 2" in head.lower()
        assert relay.arrivals.refused == {"busy": 2}


@pytest.mark.parametrize(
    ("trusted", "forwarded", "source"),
    [
        ("", "198.51.100.7", "127.0.0.1"),
        ("10.0.0.0/8", "198.51.100.7", "127.0.0.1"),
        ("127.0.0.0/8", "", "127.0.0.1"),
        ("127.0.0.0/8", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.0/8,10.0.0.0/8", "192.0.2.1, 198.51.100.7, 10.0.0.1", "198.51.100.7"),
    ],
    ids=["nobody", "another", "direct", "one", "forged"],
)
async def test_source_of_a_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trusted: str, forwarded: str, source: str
) -> None:
    """A session's source is the connection's, or what a trusted proxy names; the sender's own header is ignored."""
    caplog.set_level(logging.DEBUG, "kdispatch.relay")
    async with (
        relay_with(tmp_path, trusted_proxy=trusted) as relay,
        Visitor.of(relay.port) as visitor,
    ):
        await visitor.ask(_request({**_UPGRADE, "X-Forwarded-For": forwarded}))
        hello = frames.frame(frames.HELLO, payload=b'{"versions": [1], "secret": "%s"}' % (b"11" * 32))
        visitor.writer.write(ws_frame(0x82, hello, masked=True))
        await until(lambda: relay.gate.state().sessions == 1 and len(relay.arrivals) == 0)
        (began,) = [vars(record) for record in caplog.records if record.getMessage() == "session began"]
        assert began["source"] == source


# --- names and pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        (NAME, "/api/v1/whoami", 401),
        (NAME.upper() + ".:443", "/api/v1/whoami", 401),
        ("[2001:db8::1]:8443", "/api/v1/whoami", 401),
        ("127.0.0.1:1", "/api/v1/whoami", 401),
        ("localhost", "/api/v1/relay/state", 200),
        (f"www.{NAME}", "/api/v1/whoami", 421),
        (f"{NAME}@evil.example", "/api/v1/whoami", 421),
        (f"evil.example/{NAME}", "/api/v1/whoami", 421),
        ("192.0.2.7", "/", 421),
        ("192.0.2.7", "/api/v1/tunnel", 421),
        ("192.0.2.7", "/healthz", 200),
        ("192.0.2.7", "/readyz", 200),
        ("", "/healthz", 200),
        ("", "/api/v1/whoami", 421),
    ],
)
async def test_names(tmp_path: Path, host: str, path: str, status: int) -> None:
    """With names set, the relay answers only to these, except for health and for programs on its own machine."""
    async with relay_api(tmp_path / "relay.db", allowed_host=f"{NAME}, [2001:db8::1]") as api:
        answer = await api("GET", path, headers={"Host": host})
        assert answer.status == status
        if status == 421:
            assert answer.body["code"] == "misdirected"
            assert api.relay.arrivals.refused == {"misdirected": 1}


async def test_two_names_are_none(tmp_path: Path) -> None:
    """A request with two Host headers counts as one without a valid name."""
    async with relay_with(tmp_path, allowed_host=NAME) as relay, Visitor.of(relay.port) as visitor:
        head = await visitor.ask(f"GET /api/v1/whoami HTTP/1.1\r\nHost: {NAME}\r\nHost: {NAME}\r\n\r\n".encode())
        assert head.split()[1] in {b"400", b"421"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/tunnel"),
        ("GET", "/api/v1/whoami"),
        ("GET", "/api/v1/relay/state"),
        ("POST", "/api/v1/admins"),
        ("OPTIONS", "/api/v1/admins"),
        ("DELETE", "/api/v1/hosts/x"),
    ],
)
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_pages(tmp_path: Path, method: str, path: str, origin: str) -> None:
    """A request with an Origin comes from a web page and is refused, whichever page it is."""
    async with relay_api(tmp_path / "relay.db") as api:
        answer = await api(method, path, headers={"Origin": origin})
        assert (answer.status, answer.body["code"]) == (403, "not_permitted")
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert api.relay.arrivals.refused == {"not_permitted": 1}
        assert "handle" not in api.gate.calls


async def test_counts_are_told(tmp_path: Path) -> None:
    """What was refused at once is counted by code; refusals by handlers are not among it."""
    async with relay_api(tmp_path / "relay.db") as api:
        for path in (
            "/",
            "/.env",
            "/api/v1/nothing",
            "/api/v1/services/ann/nothing",
            "/api/v2/whoami",
            "/%61pi/v1/pods",
        ):
            assert (await api("GET", path)).status == 404
        assert (await api("PUT", "/healthz")).status == 405
        async with Visitor.of(api.relay.port) as visitor:
            assert (await visitor.ask(b"MGLNDD_192.0.2.7_8443\n\r\n")).startswith(b"HTTP/1.0 400 ")
            await visitor.ended()
        found = (await api("GET", "/api/v1/relay/state")).body
        assert found["refused"] == {"bad_request": 1, "unknown_address": 5, "wrong_method": 1}
        assert found["arrivals"] == 1  # the connection that asks


# --- the listener ----------------------------------------------------------------------------------------------


async def test_where_the_loop_watches_no_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop that can only wait for single connections serves as well."""
    loop = asyncio.get_running_loop()

    def add_reader(*_: object) -> None:
        raise NotImplementedError

    with monkeypatch.context() as patched:
        patched.setattr(Listener, "_watch", _watched_by(add_reader))
        async with relay_with(tmp_path) as relay, aiohttp.ClientSession(relay.url) as http:
            for _ in range(3):
                async with http.get("/healthz", headers={"Connection": "close"}) as answer:
                    assert answer.status == 200
    assert not [task for task in asyncio.all_tasks(loop) if task.get_name() == "listener"]


def _watched_by(add_reader: Any) -> Any:
    original = Listener._watch

    def watch(self: Listener, sock: Any) -> None:
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "add_reader", add_reader)
            original(self, sock)

    return watch
