"""A host and a client joined by a real gate, without sockets: connections in memory, and a store that allows all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from aiohttp import web

from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.transport import StreamTransport
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import StreamReset
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.aio.carrier import Carrier
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier, read_buffer
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer
from kdispatch_relay.auth import Authority, Grant
from kdispatch_relay.door.arrivals import Arrivals
from kdispatch_relay.door.http_connection import HttpConnections, http_options
from kdispatch_relay.door.listener import Listener
from kdispatch_relay.door.screen import RequestScreen
from kdispatch_relay.gate.gate import Gate
from kdispatch_relay.problems import problems
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.store.records import AuditRecord, ServiceRecord

__all__ = [
    "SCALED",
    "SERVICE",
    "MemoryTransport",
    "Program",
    "Twin",
    "Yes",
    "memory_pair",
    "running_gate",
    "settle",
    "twin",
    "until",
]

SERVICE: Final = "ann/web"
SCALED: Final = Limits(ack_delay=0.005, open_wait_start=0.2, open_wait_lost=0.1, grace=0.3, last_words=1.0)


async def settle(turns: int = 60) -> None:
    """Let the loop turn until everything in memory has been passed on."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition that has no event."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.001)


class MemoryTransport(asyncio.Transport):
    """One end of a connection in memory. ``takes`` is how many bytes its "kernel" will still accept.

    ``tls``: it reports itself as full at its high mark, like asyncio's own TLS transports, and not above it.
    """

    def __init__(self, protocol: asyncio.BaseProtocol, *, tls: bool = False) -> None:
        super().__init__()
        self.peer: MemoryTransport | None = None
        self.takes = 1 << 62
        self.sent = bytearray()  # all that the "kernel" accepted
        self.lost = asyncio.get_running_loop().create_future()
        self._protocol = protocol
        self._tls = tls
        self._waits = bytearray()
        self._marks = (16 * 1024, 64 * 1024)
        self._full = False
        self._closing = False
        self._unread: bytearray | None = None  # what arrived while reading was paused

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_reading(self) -> bool:
        return self._unread is None

    def pause_reading(self) -> None:
        if self._unread is None:
            self._unread = bytearray()

    def resume_reading(self) -> None:
        unread, self._unread = self._unread, None
        if unread:
            self.arrives(bytes(unread))

    def get_write_buffer_size(self) -> int:
        return len(self._waits)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        high = 64 * 1024 if high is None else high
        self._marks = (high // 4 if low is None else low, high)
        self._tell()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closing:
            self._waits += data
            asyncio.get_running_loop().call_soon(self.pump)
            self._tell()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        asyncio.get_running_loop().call_soon(self.pump)

    def abort(self) -> None:
        self._closing = True
        self._waits.clear()
        asyncio.get_running_loop().call_soon(self._end)

    def pump(self) -> None:
        """Pass on what the "kernel" accepts."""
        while self._waits and self.takes:
            count = min(len(self._waits), self.takes, 64 * 1024)
            piece = bytes(self._waits[:count])
            del self._waits[:count]
            self.takes -= count
            self.sent += piece
            if self.peer is not None and not self.peer.lost.done():
                self.peer.arrives(piece)
        self._tell()
        if self._closing and not self._waits:
            self._end()

    def arrives(self, data: bytes) -> None:
        """Receive bytes from the other end."""
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            while data:
                if self._unread is not None:
                    self._unread += data
                    return
                room = memoryview(protocol.get_buffer(-1))
                count = min(len(room), len(data))
                room[:count] = data[:count]
                protocol.buffer_updated(count)
                data = data[count:]

    def _tell(self) -> None:
        low, high = self._marks
        size = len(self._waits)
        if not self._full and (size >= high if self._tls else size > high):
            self._full = True
            self._protocol.pause_writing()
        elif self._full and size <= low:
            self._full = False
            self._protocol.resume_writing()

    def _end(self) -> None:
        if not self.lost.done():
            self._closing = True
            self.lost.set_result(None)
            self._protocol.connection_lost(None)
            if self.peer is not None:
                self.peer.abort()


def memory_pair(*, tls: bool = False) -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends; the caller sets each one's protocol."""
    one, two = (MemoryTransport(asyncio.BaseProtocol(), tls=tls) for _ in range(2))
    one.peer, two.peer = two, one
    return one, two


def websocket(
    transport: asyncio.Transport, *, server: bool = False, buffer: memoryview | None = None, max_message: int = 1 << 20
) -> Callable[..., Carrier]:
    """Makes the carrier of a WebSocket whose handshake is done."""
    buffer = read_buffer() if buffer is None else buffer
    return partial(WebSocketCarrier, server=server, transport=transport, buffer=buffer, max_message=max_message)


class Yes(Authority):
    """A store that knows every service, until ``error`` is set. ``asked`` counts the look-ups."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def may_host(self, service: str, token: str | bytes | None) -> Grant:
        return await self.may_open(service, token)

    async def may_open(self, service: str, token: str | bytes | None) -> Grant:
        self.asked += 1
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        return Grant(ServiceRecord(service=service, access="public"))

    def forget(self, scope: str) -> None:
        """Nothing is cached."""

    def note(self, event: AuditRecord) -> None:
        """Not read."""


class Program(asyncio.Protocol):
    """A program at a stream's end, which records what it is told."""

    transport: StreamTransport

    def __init__(self) -> None:
        self.received = bytearray()
        self.told: list[str] = []
        self.at_end = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.keep_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.told.append("eof")
        self.at_end.set()
        return self.keep_open

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.lost.set_result(exc)

    async def ended(self) -> Exception | None:
        """Wait for ``connection_lost``; returns its argument."""
        async with asyncio.timeout(20):
            return await self.lost

    async def code(self) -> str:
        """The code of a stream that was reset, after ``connection_lost``."""
        error = await self.ended()
        assert isinstance(error, StreamReset), error
        return error.code

    async def has(self, count: int) -> None:
        """Wait for this many bytes."""
        await until(lambda: len(self.received) >= count)


class Twin:
    """A gate, a host and a client. ``serve`` handles the host's streams; at first, each gets a ``Program``."""

    def __init__(self, limits: Limits) -> None:
        self.store = Yes()
        self.gate = Gate(self.store, limits=limits)
        self.events: list[Event] = []
        self.failures: list[dict[str, Any]] = []  # what the loop's exception handler got
        self.served: list[Program] = []
        self.serve: Callable[[Stream], None] = self.take
        self.host = EndpointDriver(Endpoint(b"h" * 32, limits=limits), self._host_event)
        self.client = EndpointDriver(Endpoint(b"c" * 32, limits=limits), self.events.append)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.failures.append(context))

    def connect(self, driver: EndpointDriver, *, tls: bool = False) -> MemoryTransport:
        """A new session; returns the agent's end of its connection."""
        agent, relay = memory_pair(tls=tls)
        self.gate.join(websocket(relay, server=True, buffer=self.gate.buffer), "memory")
        driver.connect(websocket(agent, buffer=driver.buffer))
        return agent

    async def start(self, *, tls: bool = False, connect: Callable[[Twin], None] | None = None) -> None:
        await self.gate.start("00" * 16)
        if connect is not None:
            connect(self)
        else:
            for driver in (self.host, self.client):
                self.connect(driver, tls=tls)
        identity = host_id(self.host.endpoint.process, SERVICE)
        self.host.endpoint.offer(Offer(service=SERVICE, host=identity, digest="00" * 32, token="t"))
        self.host.wake()
        await until(lambda: self.gate.hosts_of(SERVICE) and self.client.endpoint.ready)

    async def stop(self) -> None:
        for driver in (self.client, self.host):
            driver.stop()
        await settle(5)
        await self.gate.close()

    def take(self, stream: Stream) -> None:
        """The host's default: one ``Program`` for each stream."""
        program = Program()
        self.served.append(program)
        self.host.accept(stream, program)

    async def stream(self) -> tuple[Program, Program]:
        """An open stream: the program at the client's end, and the one at the host's."""
        client = Program()
        before = len(self.served)
        self.client.open(SERVICE, client)
        await until(lambda: len(self.served) > before and client.transport.stream.state.value == "open")
        return client, self.served[before]

    def _host_event(self, event: Event) -> None:
        if isinstance(event, events.StreamRequested):
            self.serve(event.stream)


@asynccontextmanager
async def twin(
    limits: Limits = SCALED, *, tls: bool = False, connect: Callable[[Twin], None] | None = None
) -> AsyncIterator[Twin]:
    """A host and a client, ready for streams. ``connect`` makes both sessions in the place of the usual way."""
    made = Twin(limits)
    try:
        await made.start(tls=tls, connect=connect)
        yield made
    finally:
        await made.stop()


class Running:
    """A gate behind a real listener."""

    def __init__(self, gate: Gate, store: Yes, port: int) -> None:
        self.gate = gate
        self.store = store
        self.port = port
        self.url = RelayUrl.parse(f"http://127.0.0.1:{port}")


@asynccontextmanager
async def running_gate(limits: Limits = SCALED) -> AsyncIterator[Running]:
    """The relay's tunnel without its database: upgrades on a free port, and a store that allows everything."""
    store = Yes()
    gate = Gate(store, limits=limits)
    app = web.Application(middlewares=[problems])
    app.router.add_get("/api/v1/tunnel", gate.handle, allow_head=False)
    runner = web.AppRunner(app, shutdown_timeout=1)
    arrivals = Arrivals(limits=limits)
    await gate.start("00" * 16)
    await runner.setup()
    listener = await Listener.bound(RelaySettings(listen="127.0.0.1:0"), None)
    try:
        screen = RequestScreen(app, frozenset(), arrivals.refused)
        await listener.start(HttpConnections(runner, arrivals, screen, http_options(limits), lambda *_: None))
        yield Running(gate, store, listener.port)
    finally:
        await listener.close()
        await gate.close()
        await runner.cleanup()
        arrivals.close()
