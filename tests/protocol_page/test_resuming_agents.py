"""Section 10 of docs/protocol.md is sufficient to resume streams with the real agents."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pytest

from .codec import WAIT, Session, Type, message
from .resume import Agent, Resuming
from .world import MIB, Line, World, agent_connect, agent_host, echo, line, refusal, sha

pytestmark = pytest.mark.slow

DATA: Final = MIB[:300_000]
DRAIN: Final = ("--drain-time", "0")


# --- A client of this implementation, and `agent host`


@dataclass
class Service:
    """An echo service that half-closes on b"leave", and the bytes that it received; b"" is an end."""

    port: int
    heard: asyncio.Queue[bytes]

    async def hears(self, expected: bytes) -> None:
        async with asyncio.timeout(WAIT):
            while await self.heard.get() != expected:
                pass


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            data = b"first"
            while data:
                data = await reader.read(65_536)
                heard.put_nowait(data)
                if data == b"leave":
                    writer.write_eof()
                elif data:
                    writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Service(server.sockets[0].getsockname()[1], heard)


async def test_agent_host_goes_on(world: World, tmp_path: Path, stack: AsyncExitStack) -> None:
    """A stream to a real host resumes with all bytes after the loss of either leg or a restart of the relay."""
    way = await stack.enter_async_context(line(world))
    client = await stack.enter_async_context(Agent(world.port))
    port = await stack.enter_async_context(echo())
    await stack.enter_async_context(agent_host(world, tmp_path, port, *DRAIN, url=way.url))
    stream = await client.open(b"early")
    assert await stream.read_exactly(5) == b"early"

    async def client_leg() -> None:
        client.session.deaf = True
        stream.window = 8192  # lower than the limit before
        await client.connect()

    async def host_leg() -> None:
        stream.window = 65_536
        way.hold()
        way.cut()

    async def relay() -> None:
        client.session.deaf = True
        await world.stop()
        await world.start()
        await client.connect()

    for times, lose in enumerate((client_leg, host_leg, relay), 1):
        writing = asyncio.create_task(stream.write(DATA))
        got = await stream.read_exactly(100_000)
        await lose()
        got += await stream.read_exactly(len(DATA) - len(got))
        await writing
        assert sha(got) == sha(DATA)
        assert stream.attached == times
    await stream.finish()
    assert await stream.read_all() == b""
    await stream.closed()


async def test_agent_host_answers(world: World, tmp_path: Path, stack: AsyncExitStack) -> None:
    """A real host refuses forged entries and resumes with true ones, reports how a stream ended, and attaches on
    request."""
    client = await stack.enter_async_context(Agent(world.port))
    behind = await stack.enter_async_context(service())
    await stack.enter_async_context(agent_host(world, tmp_path, behind.port, *DRAIN))
    await forged(client, stack)
    await end_again(client, behind)
    await closed(client, behind)
    await opening_goes_on(client, behind)
    for opening in (True, False):
        await unknown(client, opening=opening)


async def echoed(stream: Resuming, data: bytes) -> None:
    await stream.write(data)
    assert await stream.read_exactly(len(data)) == data


async def rejoined(stream: Resuming, times: int) -> None:
    await stream.until(lambda: stream.attached >= times)
    assert stream.attached == times


async def forged(client: Agent, stack: AsyncExitStack) -> None:
    stream = await client.open(b"a")
    assert await stream.read_exactly(1) == b"a"
    old = stream.entry()
    await client.connect()
    await rejoined(stream, 1)
    await client.lose()
    stranger = await stack.enter_async_context(await Session.start("127.0.0.1", client.port))
    assert await refusal(stranger, stream.entry()) == "unknown_stream"
    # Not an Agent: an Agent would answer the host's request with "unknown stream".
    thief = await stack.enter_async_context(await Session.start("127.0.0.1", client.port, client.secret))
    assert await refusal(thief, stream.entry(proof=secrets.token_hex(32))) == "bad_proof"
    assert await refusal(thief, old) == "gone"
    await client.connect()
    await rejoined(stream, 2)
    await client.attach([stream])  # the host gets a request without a loss
    await rejoined(stream, 3)
    await echoed(stream, b"b")
    await stream.finish()
    assert await stream.read_all() == b""
    await stream.closed()


async def end_again(client: Agent, behind: Service) -> None:
    """The host's FIN is lost."""
    stream = await client.open(b"a")
    assert await stream.read_exactly(1) == b"a"
    client.session.deaf = True
    await stream.write(b"leave")
    await behind.hears(b"leave")
    await asyncio.sleep(0.03)
    await client.connect()
    assert await stream.read_all() == b""
    await stream.finish()
    await stream.closed()


async def closed(client: Agent, behind: Service) -> None:
    stream = await client.open(b"leave")
    assert await stream.read_all() == b""
    await client.session.ping()
    client.session.deaf = True
    await stream.finish()
    await behind.hears(b"")
    assert not stream.finished
    await client.connect()
    await stream.closed()


async def opening_goes_on(client: Agent, behind: Service) -> None:
    """The host has answered, and OPENED is lost."""
    client.session.deaf_after = Type.TRYING
    stream = await client.open(b"early")
    await behind.hears(b"early")
    await client.connect()
    await rejoined(stream, 1)
    assert await stream.read_exactly(5) == b"early"
    await echoed(stream, b"late")
    await client.session.send(message(Type.RESET, stream.number, code="busy"))


async def unknown(client: Agent, *, opening: bool) -> None:
    """The host does not know the stream."""
    stream = await client.open(b"early")
    assert await stream.read_exactly(5) == b"early"
    del client.streams[stream.name]
    await client.lose()
    lost = Resuming(client, "client", secrets.token_hex(16), 65_536)
    lost.secret, lost.key, lost.peer, lost.opening = stream.secret, stream.key, stream.peer, opening
    lost.keep(b"early")
    lost.sent = 5
    await stream.stop()
    await client.connect()
    if opening:
        assert await lost.read_exactly(5) == b"early"
        await echoed(lost, b"late")
        await client.session.send(message(Type.RESET, lost.number, code="busy"))
    else:
        assert await lost.reset_code() == "unknown_stream"


# --- A host of this implementation, and `agent connect`


async def give_back(stream: Resuming) -> None:
    while data := await stream.read():
        await stream.write(data)
    await stream.finish()
    await stream.closed()


@pytest.fixture
async def host(world: World, stack: AsyncExitStack) -> Agent:
    found = await stack.enter_async_context(Agent(world.port, token=world.token))
    await found.offer()
    return found


class Program:
    """A TCP connection to the local port of `agent connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, stack: AsyncExitStack) -> Self:
        found = cls(*await asyncio.open_connection("127.0.0.1", port))
        stack.callback(found.writer.close)
        return found

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(WAIT):
            return await self.reader.readexactly(size)

    async def is_reset(self) -> None:
        async with asyncio.timeout(WAIT):
            with pytest.raises(ConnectionResetError):
                await self.reader.read()


async def test_agent_connect_goes_on(world: World, tmp_path: Path, stack: AsyncExitStack, host: Agent) -> None:
    """A real client's stream resumes with all bytes after the loss of either leg or a restart of the relay."""
    way = await stack.enter_async_context(line(world))
    port = await stack.enter_async_context(agent_connect(world, tmp_path, *DRAIN, url=way.url))
    program = await Program.connect(port, stack)
    stream = await host.accept()
    serving = asyncio.create_task(give_back(stream))

    async def client_leg() -> None:
        way.hold()
        way.cut()

    async def host_leg() -> None:
        host.session.deaf = True
        stream.window = 8192  # lower than the limit before
        await host.connect()

    async def relay() -> None:
        host.session.deaf = True
        stream.window = 65_536
        await world.stop()
        await world.start()
        await host.connect()

    for times, lose in enumerate((client_leg, host_leg, relay), 1):
        program.writer.write(DATA)
        got = await program.read(100_000)
        await lose()
        got += await program.read(len(DATA) - len(got))
        assert sha(got) == sha(DATA)
        assert stream.attached == times
    program.writer.write_eof()
    async with asyncio.timeout(WAIT):
        assert await program.reader.read() == b""
        await serving


async def test_agent_connect_answers(world: World, tmp_path: Path, stack: AsyncExitStack, host: Agent) -> None:
    """A real client refuses a forged entry and resumes with the true one, attaches while it is opening, sends OPEN
    again, and resets its program if the stream is unknown or the host restarted."""
    way = await stack.enter_async_context(line(world))
    port = await stack.enter_async_context(agent_connect(world, tmp_path, *DRAIN, url=way.url))
    await forged_host(host, await Program.connect(port, stack), stack)
    for known in (True, False):
        await opening_client(host, way, await Program.connect(port, stack), known=known)
    await forgotten(host, await Program.connect(port, stack))

    program = await Program.connect(port, stack)
    await opened(host, program)
    await host.lose()
    successor = Agent(world.port)
    await successor.connect(predecessors=[host.secret.hex()])
    stack.push_async_exit(successor)
    await program.is_reset()


async def opened(host: Agent, program: Program) -> Resuming:
    """Return the program's stream, after the client knows that it is open."""
    stream = await host.accept()
    program.writer.write(b"a")
    assert await stream.read_exactly(1) == b"a"
    await stream.write(b"b")
    assert await program.read(1) == b"b"
    return stream


async def forged_host(host: Agent, program: Program, stack: AsyncExitStack) -> None:
    stream = await opened(host, program)
    await host.connect()
    await rejoined(stream, 1)
    await host.lose()
    thief = await stack.enter_async_context(await Session.start("127.0.0.1", host.port, host.secret))
    assert await refusal(thief, stream.entry(proof=secrets.token_hex(32)), host.token) == "bad_proof"
    await host.connect()
    await rejoined(stream, 2)
    await stream.write(b"c")
    await stream.finish()
    program.writer.write_eof()
    async with asyncio.timeout(WAIT):
        assert await program.reader.read() == b"c"
    await stream.closed()


async def opening_client(host: Agent, way: Line, program: Program, *, known: bool) -> None:
    """The client has sent early data when OPENED, or its OPEN, is lost."""
    asked, stream = await host.take()
    said = way.said
    program.writer.write(b"early")
    async with asyncio.timeout(WAIT):
        while way.said == said:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)
    assert stream is not None
    if known:
        way.hold()
        await stream.opened(asked.json, 65_536)
        assert await stream.read_exactly(5) == b"early"
        way.cut()
        await rejoined(stream, 1)
    else:
        way.cut()
        assert await stream.reset_code() == "cancelled"
        stream = await host.accept()
        assert await stream.read_exactly(5) == b"early"
        assert stream.uuid == asked.json["uuid"]
    program.writer.write(b" late")
    assert await stream.read_exactly(5) == b" late"
    program.writer.write_eof()
    assert await stream.read_all() == b""
    await stream.finish()
    async with asyncio.timeout(WAIT):
        assert await program.reader.read() == b""
    await stream.closed()


async def forgotten(host: Agent, program: Program) -> None:
    stream = await opened(host, program)
    await stream.stop()
    del host.streams[stream.name]
    await host.connect()
    await program.is_reset()
