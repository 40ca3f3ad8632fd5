"""The gate on real sockets: which upgrades it accepts, how sessions end, and which agents are told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import logging
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Protocol, Self

import pytest

from kdispatch_protocol.limits import KIB, Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Frame, frame
from kdispatch_protocol.wire.identity import host_id, process_id
from kdispatch_protocol.wire.messages import QUIET, Goaway, Hello, Offer, Open, Opened, Reset
from kdispatch_protocol.wire.websocket import WebSocketReader
from tests.aio.twin import SERVICE, Running, running_gate, until
from tests.core.wire import Messages, ws_frame
from tests.guards.promises import promised

_KEY = base64.b64encode(b"k" * 16).decode()
_UPGRADE = {
    "Host": "relay.example",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": _KEY,
    "Sec-WebSocket-Protocol": "kdispatch.1",
}


@pytest.fixture
async def relay() -> AsyncIterator[Running]:
    async with running_gate() as running:
        yield running


def _request(headers: dict[str, str]) -> bytes:
    lines = ["GET /api/v1/tunnel HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode()


class HasPort(Protocol):
    """The part of a relay that agents driven by tests need."""

    @property
    def port(self) -> int: ...


class _Agent:
    """An agent driven by the test: it sends what the test says, and keeps what arrives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> None:
        self.secret = secret
        self.process = process_id(secret)
        self.frames: list[Frame] = []  # not yet taken
        self.wire = WebSocketReader(server=False, max_message=1 << 20)
        self._messages = Messages(self.wire)
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def of(
        cls,
        relay: HasPort,
        secret: bytes = b"\x11" * 32,
        *,
        hello: bool = True,
        quiet: bool = False,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> AsyncIterator[Self]:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        try:
            writer.write(_request({**_UPGRADE, **headers}))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            agent = cls(reader, writer, secret)
            if hello:
                said = Hello(versions=[1], secret=secret.hex(), capabilities=[QUIET] if quiet else [])
                agent.send(frame(frames.HELLO, payload=said.encode()))
                await agent.next(frames.WELCOME)
            yield agent
        finally:
            writer.transport.abort()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    def send(self, message: bytes) -> None:
        self.write(ws_frame(0x82, message, masked=True))

    def write(self, data: bytes) -> None:
        """Write bytes to the connection, perhaps a part of a message."""
        self._writer.write(data)

    async def next(self, type_: int) -> Frame:
        """The next frame of this type; frames before it are dropped."""
        async with asyncio.timeout(20):
            while True:
                while self.frames:
                    if self.frames[0][0] == type_:
                        return self.frames.pop(0)
                    self.frames.pop(0)
                data = await self._reader.read(65536)
                assert data, "the relay has closed the connection"
                for message in self._messages.feed(data):
                    self.frames += frames.decode(message)

    async def end(self) -> None:
        """Read to the relay's close frame, answer it, and read until the connection is closed."""
        async with asyncio.timeout(20):
            while self.wire.closing is None and (data := await self._reader.read(65536)):
                for message in self._messages.feed(data):
                    self.frames += frames.decode(message)
            self._writer.write(ws_frame(0x88, b"\x03\xe8", masked=True))
            with contextlib.suppress(OSError):  # the relay may have closed it meanwhile
                self._writer.write_eof()
            while await self._reader.read(65536):
                pass

    async def offer(self, number: int = 1) -> Frame:
        offer = Offer(service=SERVICE, host=host_id(self.process, SERVICE), digest="00" * 32, token="t")
        self.send(frame(frames.OFFER, number, payload=offer.encode()))
        while True:
            await self._some_frame()
            answer = self.frames.pop(0)
            if answer[0] in {frames.OFFERED, frames.RESET}:
                return answer

    def open(self, number: int = 3) -> None:
        message = Open(service=SERVICE, uuid=f"{number:032x}", limit=1 << 18)
        self.send(frame(frames.OPEN, number, payload=message.encode()))

    async def _some_frame(self) -> None:
        async with asyncio.timeout(20):
            while not self.frames:
                data = await self._reader.read(65536)
                assert data, "the relay has closed the connection"
                for message in self._messages.feed(data):
                    self.frames += frames.decode(message)


# --- upgrades ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        pytest.param({"Sec-WebSocket-Protocol": ""}, 426, "version_unsupported", id="no subprotocol"),
        pytest.param({"Sec-WebSocket-Protocol": "kdispatch.9"}, 426, "version_unsupported", id="other subprotocol"),
        pytest.param({"Origin": "https://page.example"}, 403, "not_permitted", id="web page"),
        pytest.param({"Sec-WebSocket-Key": "short"}, 422, "bad_request", id="bad key"),
        pytest.param({"Sec-WebSocket-Key": ""}, 422, "bad_request", id="no key"),
        pytest.param({"Sec-WebSocket-Key": "\u00e9" * 24}, 422, "bad_request", id="key of other letters"),
        pytest.param({"Sec-WebSocket-Version": "8"}, 422, "bad_request", id="old websocket"),
        pytest.param({"Upgrade": "", "Connection": ""}, 422, "bad_request", id="plain get"),
        pytest.param({"Upgrade": "h2c"}, 422, "bad_request", id="other upgrade"),
    ],
)
async def test_refused_upgrade(relay: Running, changed: dict[str, str], status: int, code: str) -> None:
    """An invalid upgrade is answered with a problem and its code, and makes no session."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        writer.write(_request(_UPGRADE | changed | ({} if "Upgrade" in changed else {"X-More": "1"})))
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
            body = json.loads(await reader.readexactly(length))
    finally:
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert body["code"] == code
    assert not relay.gate._links


async def test_frames_behind_the_request(relay: Running) -> None:
    """Frames that an agent sends together with its request begin the session."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    hello = frame(frames.HELLO, payload=Hello(versions=[1], secret="11" * 32).encode())
    writer.write(_request(_UPGRADE) + ws_frame(0x82, hello, masked=True))
    try:
        async with asyncio.timeout(20):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert (await reader.readexactly(1)) == b"\x82"  # the message with WELCOME
    finally:
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


# --- before HELLO -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "close"), [(16 * KIB + 1, 1009), (16 * KIB, 1008)])
async def test_large_message_before_hello(relay: Running, size: int, close: int) -> None:
    """Before HELLO, the relay keeps at most 16 KiB for a message: a larger one is cut by its head alone."""
    async with _Agent.of(relay, hello=False) as agent:
        agent._writer.write(ws_frame(0x82, b"\xff" * size if close == 1008 else b"", masked=True, length=size))
        await agent.end()
        assert agent.wire.closing is not None and agent.wire.closing.code == close
    await until(lambda: not relay.gate._links)


async def test_large_message_after_hello(relay: Running) -> None:
    """After HELLO, an agent may send messages of the protocol's size."""
    async with _Agent.of(relay) as agent:
        agent.send(frame(frames.PING) * 10_000)
        await agent.next(frames.PONG)


async def test_half_a_message_counts(relay: Running) -> None:
    """An incomplete message counts in what its session holds, until its last byte arrives."""
    async with _Agent.of(relay) as agent:
        [session] = relay.gate.switch.sessions
        before = session.held
        whole = ws_frame(0x82, frame(frames.DATA, 7, 0, bytes(100 * KIB)), masked=True)
        agent.write(whole[: 50 * KIB])
        await until(lambda: session.held >= before + 50 * KIB - 100)
        agent.write(whole[50 * KIB :])
        await agent.next(frames.GONE)
        assert session.held < before + KIB


@pytest.mark.timed
async def test_no_hello() -> None:
    """A session without HELLO in time ends; one with HELLO stays."""
    async with running_gate(Limits(hello=0.1)) as relay, _Agent.of(relay) as greeted:
        async with _Agent.of(relay, hello=False) as silent:
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with asyncio.timeout(10):
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await silent._reader.readexactly(1)
            assert loop.time() - began < promised(1)
        greeted.send(frame(frames.PING, value=7))
        assert (await greeted.next(frames.PONG))[3] == 7


async def test_a_quiet_session() -> None:
    """An agent that announced that it is quiet outlives a silence for which another one is cut."""
    limits = Limits(dead_relay=0.2, quiet=30.0)
    one, two = b"\x11" * 32, b"\x22" * 32
    async with (
        running_gate(limits) as relay,
        _Agent.of(relay, one, quiet=True) as quiet,
        _Agent.of(relay, two) as other,
    ):
        await other.end()
        quiet.send(frame(frames.PING, value=7))
        assert (await quiet.next(frames.PONG))[3] == 7


# --- ends of sessions ----------------------------------------------------------------------------------


async def _carried(client: _Agent, host: _Agent) -> int:
    """An open stream, number 3 at the client; returns its number at the host."""
    await host.offer()
    client.open(3)
    number = (await host.next(frames.OPEN))[2]
    host.send(frame(frames.OPENED, number, payload=Opened(limit=1 << 18, attempt=1).encode()))
    await client.next(frames.OPENED)
    return number


async def test_protocol_error(relay: Running) -> None:
    """When an agent breaks the protocol, its peers are told at once, while its connection still exists."""
    async with _Agent.of(relay, b"\x11" * 32) as client, _Agent.of(relay, b"\x22" * 32) as host:
        number = await _carried(client, host)
        client.send(b"\xff" * 16)  # and it answers no close frame
        async with asyncio.timeout(promised(0.5)):
            _, _, stream, _, _ = await host.next(frames.GONE)
        assert stream == number
        goaway = await client.next(frames.GOAWAY)
        assert Goaway.parse(goaway[4]).code == "protocol_error"
        assert relay.gate.switch.by_process.keys() == {host.process}


async def test_protocol_error_of_a_host(relay: Running) -> None:
    """A host that breaks the protocol leaves the list, and its clients are told at once."""
    async with _Agent.of(relay, b"\x11" * 32) as client, _Agent.of(relay, b"\x22" * 32) as host:
        await _carried(client, host)
        host.send(b"\xff" * 16)
        async with asyncio.timeout(promised(0.5)):
            await client.next(frames.GONE)
        assert not relay.gate.hosts_of(SERVICE)


async def test_superseded(relay: Running) -> None:
    """A second session of the same process ends the first one, which is told why."""
    async with _Agent.of(relay) as older:
        await older.offer()
        async with _Agent.of(relay) as newer:
            await older.end()
            assert Goaway.parse(next(f for f in older.frames if f[0] == frames.GOAWAY)[4]).code == "superseded"
            assert older.wire.closing is not None and older.wire.closing.reason == "superseded"
            assert not relay.gate.hosts_of(SERVICE)  # the offer belonged to the older session
            assert (await newer.offer())[0] == frames.OFFERED
            await until(lambda: len(relay.gate._links) == 1)
            assert len(relay.gate.hosts_of(SERVICE)) == 1


async def test_drain() -> None:
    """A relay that closes tells its agents to move, and accepts no new ones."""
    async with running_gate() as relay, _Agent.of(relay) as agent:
        closing = asyncio.create_task(relay.gate.close())
        await agent.end()
        assert Goaway.parse(agent.frames[-1][4]).code == "drain"
        await closing
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(_request(_UPGRADE))
        assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 503 Service Unavailable\r\n"
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_close_during_an_open(relay: Running) -> None:
    """An open that is pending when the relay closes does not fail: its client sees only the end of the session."""
    async with _Agent.of(relay, b"\x22" * 32) as host, _Agent.of(relay, b"\x11" * 32) as client:
        await host.offer()
        client.open()
        await host.next(frames.OPEN)
        closing = asyncio.create_task(relay.gate.close())
        await asyncio.gather(client.end(), host.end())
        await closing
        assert [f[0] for f in client.frames] == [frames.TRYING, frames.GOAWAY]
        assert [f[0] for f in host.frames] == [frames.RESET, frames.GOAWAY]


# --- the store -------------------------------------------------------------------------------------------


async def test_failing_store(relay: Running, caplog: pytest.LogCaptureFixture) -> None:
    """If the store fails unexpectedly, offers and opens get ``internal_error``, and the log has a traceback."""
    relay.store.error = ZeroDivisionError("secret detail")
    async with _Agent.of(relay) as agent:
        with caplog.at_level(logging.ERROR, "kdispatch.relay"):
            type_, _, number, _, payload = await agent.offer(1)
            refused = Reset.parse(payload)
            assert (type_, number, refused.code) == (frames.RESET, 1, "internal_error")
            assert "secret" not in refused.text
            agent.open(3)
            _, _, number, _, payload = await agent.next(frames.RESET)
            assert (number, Reset.parse(payload).code) == (3, "internal_error")
        assert [record.message for record in caplog.records] == ["A look-up failed."] * 2
        relay.store.error = None
        assert (await agent.offer(5))[0] == frames.OFFERED


async def test_close_during_a_look_up() -> None:
    """A gate that closes during a look-up waits for the answer, and leaves nothing open."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        before = asyncio.all_tasks()
        async with running_gate() as relay, _Agent.of(relay) as agent:
            relay.store.answering.clear()
            agent.open(3)
            await until(lambda: relay.store.asked)
            closing = asyncio.create_task(relay.gate.close())
            await agent.end()
            await until(lambda: not relay.gate._links)
            assert not closing.done()
            relay.store.answering.set()
            async with asyncio.timeout(20):
                await closing
        assert asyncio.all_tasks() == before
        gc.collect()


async def test_answer_for_one_who_left(relay: Running) -> None:
    """A look-up's answer for an offer whose session is gone lists no host."""
    relay.store.answering.clear()
    async with _Agent.of(relay) as agent:
        offer = Offer(service=SERVICE, host=host_id(agent.process, SERVICE), digest="00" * 32, token="t")
        agent.send(frame(frames.OFFER, 1, payload=offer.encode()))
        agent.open(3)
        await until(lambda: relay.store.asked == 2)
    await until(lambda: not relay.gate._links)
    relay.store.answering.set()
    await until(lambda: not relay.gate._access._work)
    assert not relay.gate.hosts_of(SERVICE)
