"""A relay's port: when it is refused, and how one relay takes it over from another without losing a connection."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Goaway
from kdispatch_relay.door import sockets, steering
from kdispatch_relay.door.listener import Port
from kdispatch_relay.gate.gate import Gate
from kdispatch_relay.server import RunningRelay, running_relay
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.switch.views import Left
from tests.relay.support import FakeGate, relay_api
from tests.relay.test_gate import _Agent

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told which socket is next")

_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Visitors:
    """Programs that connect, ask for ``/healthz`` and expect the answer, one after the other, in several tasks."""

    def __init__(self, port: int, pause: float = 0.0) -> None:
        self.port = port
        self.served = 0
        self.failed: list[str] = []
        self._pause = pause
        self._over = False

    async def visit(self) -> None:
        while not self._over:
            try:
                async with asyncio.timeout(10):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    try:
                        await asyncio.sleep(self._pause)
                        writer.write(_REQUEST)
                        answer = await reader.read()
                    finally:
                        writer.close()
                if answer.startswith(b"HTTP/1.1 200 "):
                    self.served += 1
                else:
                    self.failed.append(f"answered {answer[:40]!r}")
            except (OSError, TimeoutError) as error:
                self.failed.append(repr(error))

    @asynccontextmanager
    async def come(self, count: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.visit()) for _ in range(count)]
        try:
            yield
        finally:
            self._over = True
            await asyncio.gather(*tasks)


async def _started(folder: Path, listen: str, **more: Any) -> tuple[RunningRelay, AsyncExitStack]:
    stack = AsyncExitStack()
    api = await stack.enter_async_context(relay_api(folder / "relay.db", listen=listen, **more))
    return api.relay, stack


async def _ended(relay: RunningRelay, stack: AsyncExitStack) -> Port:
    port = await relay.turn_away()
    await relay.drain(1.0, lambda _: None)
    await stack.aclose()
    return port


# --- from one relay to the next ------------------------------------------------------------------


@linux
@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "slow to ask"])
async def test_hand_over_loses_no_connection(tmp_path: Path, pause: float) -> None:
    """While relays follow each other on one port, faster than they leave it, each connection is answered."""
    current, end = await _started(tmp_path, "127.0.0.1:0")
    visitors = Visitors(current.port, pause)
    ending: list[asyncio.Task[Port]] = []
    async with visitors.come(16):
        for _ in range(4):
            following, following_end = await _started(tmp_path, f"127.0.0.1:{current.port}", reuse_port=True)
            ending.append(asyncio.create_task(_ended(current, end)))
            current, end = following, following_end
        assert set(await asyncio.gather(*ending)) == {Port.TAKEN}
    assert await _ended(current, end) is Port.CLOSED
    assert visitors.failed == []
    assert visitors.served > 200


@linux
async def test_the_newest_gets_what_comes(tmp_path: Path) -> None:
    """From its start, a relay that took over a port gets all new connections; the older one keeps those that it has."""
    older, end_older = await _started(tmp_path, "127.0.0.1:0")
    async with aiohttp.ClientSession(older.url) as kept:
        assert await _calls(kept, older) == 1
        newer, end_newer = await _started(tmp_path, f"127.0.0.1:{older.port}", reuse_port=True)
        async with end_older, end_newer:
            for _ in range(20):
                async with aiohttp.ClientSession(older.url) as fresh:
                    assert await _calls(fresh, newer) == 1
            assert await _calls(kept, older) == 1


async def _calls(http: aiohttp.ClientSession, expected: RunningRelay) -> int:
    """How many requests for a tunnel the expected relay sees."""
    gate = expected.gate
    assert isinstance(gate, FakeGate)
    before = len(gate.calls)
    async with http.get("/api/v1/tunnel") as answer:
        assert answer.status == 500  # the fake's answer
    return len(gate.calls) - before


@linux
@pytest.mark.slow
async def test_where_the_kernel_takes_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the BPF program, both relays get connections until the older one has left; then the newer gets all."""
    monkeypatch.setattr(steering, "send_all_to", lambda _sock, _number: False)
    older, end_older = await _started(tmp_path, "127.0.0.1:0")
    newer, end_newer = await _started(tmp_path, f"127.0.0.1:{older.port}", reuse_port=True)
    async with end_newer:
        assert await _ended(older, end_older) is Port.TAKEN
        for _ in range(20):
            async with aiohttp.ClientSession(newer.url) as fresh:
                assert await _calls(fresh, newer) == 1


@linux
@pytest.mark.slow
async def test_tls_is_handed_over(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """Connections that the kernel had accepted for a relay with TLS are served with TLS."""
    files = {"tls_cert": certificate[0], "tls_key": certificate[1]}
    trust = ssl.create_default_context(cafile=certificate[0])
    older, end_older = await _started(tmp_path, "127.0.0.1:0", **files)
    newer, end_newer = await _started(tmp_path, f"127.0.0.1:{older.port}", reuse_port=True, **files)
    async with end_newer:
        port = await older.turn_away()
        steering.send_all_to(older._listener._sockets[0], 0)  # as if the kernel had not been told
        draining = asyncio.create_task(older.drain(1.0, lambda _: None))
        async with aiohttp.ClientSession(older.url) as http, http.get("/healthz", ssl=trust) as answer:
            assert answer.status == 200
        await draining
        await end_older.aclose()
        assert port is Port.TAKEN
        async with aiohttp.ClientSession(newer.url) as http, http.get("/healthz", ssl=trust) as answer:
            assert answer.status == 200


async def test_requests_under_way(tmp_path: Path) -> None:
    """A draining relay finishes its pending request, and closes idle connections at once."""
    relay, end = await _started(tmp_path, "127.0.0.1:0")
    idle_reader, idle = await asyncio.open_connection("127.0.0.1", relay.port)
    idle.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await idle_reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(
        b"POST /api/v1/admins HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n"
    )
    await asyncio.sleep(0.05)
    ending = asyncio.create_task(_ended(relay, end))
    async with asyncio.timeout(20):
        assert (await idle_reader.read()).endswith(b'{"status":"ok"}')
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(b'{"handle": "bo"}')
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 201 ") and b"Connection: close" in answer
    assert await ending is Port.CLOSED
    for one in (idle, writer):
        one.close()


async def test_an_agent_that_was_queued(tmp_path: Path) -> None:
    """An agent whose connection was queued when its relay began to drain gets a session, and is told to move."""
    settings = RelaySettings(listen="127.0.0.1:0", database=str(tmp_path / "relay.db"))
    async with running_relay(settings, Gate) as relay:
        await relay.turn_away()

        async def visit() -> None:
            async with _Agent.of(relay) as agent:
                goaway = Goaway.parse((await agent.next(frames.GOAWAY))[4])
                assert (goaway.code, goaway.move_ms) == ("drain", 200)
                assert relay.gate.state().draining

        visiting = asyncio.create_task(visit())
        await asyncio.sleep(0.05)  # it is queued
        told: list[Left] = []
        async with asyncio.timeout(1.9):
            left = await relay.drain(2.0, told.append)
            await visiting
        assert left == Left(0, 0, 0)
        assert told == [Left(0, 1, 0)]


# --- who may come beside ----------------------------------------------------------------------------


@linux
async def test_a_relay_is_not_joined_by_accident(tmp_path: Path) -> None:
    """A second relay on the port of the first is refused, unless it has --reuse-port."""
    relay, end = await _started(tmp_path, "127.0.0.1:0")
    async with end:
        await _refused(tmp_path, f"127.0.0.1:{relay.port}")
        _, end_second = await _started(tmp_path, f"127.0.0.1:{relay.port}", reuse_port=True)
        await end_second.aclose()


@linux
@pytest.mark.parametrize("shares", [True, False])
async def test_only_a_relay_is_joined(tmp_path: Path, shares: bool) -> None:
    """A program on the port that is not a relay is reported, whether or not it shares the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, reuse_port=shares) as server:
        port = server.sockets[0].getsockname()[1]
        await _refused(tmp_path, f"127.0.0.1:{port}", reuse_port=True)


@linux
async def test_another_tls_setting_is_not_joined(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """A relay with TLS does not share a port with one without: half of the connections would fail."""
    relay, end = await _started(tmp_path, "127.0.0.1:0")
    async with end:
        files = {"tls_cert": certificate[0], "tls_key": certificate[1]}
        await _refused(tmp_path, f"127.0.0.1:{relay.port}", reuse_port=True, **files)


@linux
async def test_reuse_port_where_nobody_listens(tmp_path: Path) -> None:
    """The first relay may have the flag as well, so that one unit file serves for all."""
    relay, end = await _started(tmp_path, "127.0.0.1:0", reuse_port=True)
    async with end:
        await _refused(tmp_path, f"127.0.0.1:{relay.port}")


async def _refused(folder: Path, listen: str, **more: Any) -> None:
    with pytest.raises(KdispatchError) as caught:
        async with relay_api(folder / "other.db", listen=listen, **more):
            pass
    assert caught.value.code == "port_in_use"


# --- sockets --------------------------------------------------------------------------------------------


def test_one_port_for_all_addresses() -> None:
    """With port 0, all addresses get the same port; an address of a missing family is left out."""
    made = sockets.bound([(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET, ("127.0.0.2", 0))], beside=False)
    try:
        assert len({sock.getsockname()[1] for sock in made}) == 1
    finally:
        sockets.close(made)
    made = sockets.bound([(socket.AF_INET, ("192.0.2.1", 0)), (socket.AF_INET, ("127.0.0.1", 0))], beside=False)
    assert [sock.getsockname()[0] for sock in made] == ["127.0.0.1"]
    sockets.close(made)
    with pytest.raises(OSError, match="assign"):
        sockets.bound([(socket.AF_INET, ("192.0.2.1", 0))], beside=False)


def _handed(count: str, names: str = "", pid: int | None = None) -> dict[str, str]:
    own = str(os.getpid() if pid is None else pid)
    return {"LISTEN_PID": own, "LISTEN_FDS": count, "LISTEN_FDNAMES": names, "PATH": "x"}


@pytest.mark.parametrize("environment", [{}, {"LISTEN_FDS": "1"}, _handed("1", pid=1), _handed("x"), _handed("0")])
def test_nothing_was_handed_over(environment: dict[str, str]) -> None:
    """Variables for another process, or without content, are ignored."""
    assert sockets.handed_over(environment) == []
    assert not [name for name in environment if name.startswith("LISTEN_")]


@pytest.mark.skipif(os.name != "posix", reason="there are no descriptors to hand over")
@pytest.mark.parametrize("kind", ["not listening", "unix", "udp", "file", "closed"])
def test_what_is_no_listening_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A handed-over descriptor that is not a listening TCP socket is refused by its name."""
    made: socket.socket | None = None
    if kind == "file":
        descriptor = os.open(tmp_path, os.O_RDONLY)
    else:
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        if kind == "unix":
            made.bind(str(tmp_path / "s"))
            made.listen()
        descriptor = made.detach()
        if kind == "closed":
            os.close(descriptor)
    monkeypatch.setattr(sockets, "_FIRST", descriptor)
    with pytest.raises(KdispatchError, match="handed over as web") as caught:
        sockets.handed_over(_handed("1", "web"))
    assert caught.value.code == "bad_request"
    if kind == "file":
        os.close(descriptor)


@pytest.mark.skipif(os.name != "posix", reason="there are no descriptors to hand over")
async def test_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that was handed over replaces the settings' address, and outlives the relay."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        monkeypatch.setattr(sockets, "_FIRST", os.dup(theirs.fileno()))
        for name, value in _handed("1").items():
            if name != "PATH":
                monkeypatch.setenv(name, value)
        relay, end = await _started(tmp_path, "127.0.0.1:1")
        assert relay.port == theirs.getsockname()[1]
        async with aiohttp.ClientSession(relay.url) as http, http.get("/healthz") as answer:
            assert answer.status == 200
        assert await _ended(relay, end) is Port.KEPT
        with socket.create_connection(theirs.getsockname(), timeout=30):
            theirs.settimeout(2)
            theirs.accept()[0].close()


@pytest.mark.skipif(os.name != "posix", reason="there are no descriptors to hand over")
async def test_several_were_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay listens on all sockets that it is given."""
    theirs = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    monkeypatch.setattr(sockets, "_FIRST", 200)  # consecutive descriptors that are free
    for number, one in enumerate(theirs):
        os.dup2(one.fileno(), 200 + number)
    for name, value in _handed("2", "one:two").items():
        if name != "PATH":
            monkeypatch.setenv(name, value)
    _, end = await _started(tmp_path, "127.0.0.1:1")
    async with end, aiohttp.ClientSession() as http:
        for one in theirs:
            async with http.get(f"http://127.0.0.1:{one.getsockname()[1]}/healthz") as answer:
                assert answer.status == 200
            one.close()


@pytest.mark.skipif(os.name != "posix", reason="there are no descriptors to hand over")
async def test_plaintext_on_a_socket_that_was_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain HTTP on a public address is refused for handed-over sockets as well: the bound address counts."""
    with socket.create_server(("0.0.0.0", 0)) as theirs:
        monkeypatch.setattr(sockets, "_FIRST", os.dup(theirs.fileno()))
        for name, value in _handed("1").items():
            if name != "PATH":
                monkeypatch.setenv(name, value)
        with pytest.raises(KdispatchError) as caught:
            await _started(tmp_path, "127.0.0.1:0")
    assert caught.value.code == "plaintext_refused"
