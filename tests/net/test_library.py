"""The library: services as asyncio streams, with a relay on the same loop."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

import kdispatch
from kdispatch.network.dialer import Dialer, Upgraded
from kdispatch.network.upgrade import Refusal
from kdispatch_protocol.limits import Limits
from tests.net.harness import KIB, MIB, Network, eventually
from tests.net.loop_stack import Stack, running_stack
from tests.net.tcp import service, silent

# Connections of a loop share one session, which lives as long as the loop.
pytestmark = [pytest.mark.slow, pytest.mark.leaves("kdispatch uplink")]

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_HASTY: Final = Limits(open_wait_start=0.2, open_wait_lost=0.2)  # an open waits no longer for a host to come back
_DATA: Final = random.Random(11).randbytes(5 * MIB)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings and tokens of the user who runs the tests are not used."""
    for name in ("KDISPATCH_RELAY", "KDISPATCH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path / "config"))


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(64 * KIB):
        writer.write(piece)
        await writer.drain()


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    """Send all and then the end, and receive meanwhile; returns what arrived."""

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    received, _ = await asyncio.gather(reader.read(), send())
    return received


async def _server(stack: Stack, connected: Connected) -> kdispatch.Server:
    return await kdispatch.start_server(connected, stack.service, relay=stack.url, token=stack.token)


async def test_echo(tmp_path: Path) -> None:
    """5 MB come back complete over asyncio's own streams, and wait_closed() returns at both ends."""
    closed = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _echo(reader, writer)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with running_stack(tmp_path) as stack, await _server(stack, connected) as server, asyncio.timeout(20):
        reader, writer = await kdispatch.open_connection(stack.service, relay=stack.url)
        assert writer.get_extra_info("peername") == (stack.service, server.host)
        received = await _say(reader, writer, _DATA)
        assert hashlib.sha256(received).digest() == hashlib.sha256(_DATA).digest()
        writer.close()
        await writer.wait_closed()
        await closed.wait()


async def test_no_live_host(tmp_path: Path) -> None:
    """A connection to a service without a live host is refused with the code that says so."""
    async with running_stack(tmp_path, _HASTY) as stack:
        with pytest.raises(kdispatch.StreamReset) as caught:
            await kdispatch.open_connection(stack.service, relay=stack.url)
        assert caught.value.code == "no_live_host"


async def test_connections_of_a_loop_share_a_session(tmp_path: Path) -> None:
    """However many connections a loop has at a time, the relay sees one session."""
    async with running_stack(tmp_path) as stack, await _server(stack, _echo):
        opens = (kdispatch.open_connection(stack.service, relay=stack.url) for _ in range(10))
        pairs = await asyncio.gather(*opens)
        assert len(stack.switch.by_process) == 2
        assert await asyncio.gather(*(_say(*pair, b"hello") for pair in pairs)) == [b"hello"] * 10
        for _, writer in pairs:
            writer.close()


async def _give_up(connecting: asyncio.Task[Any]) -> None:
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_cancelled_connecting_leaves_nothing(tmp_path: Path) -> None:
    """A program that gives up while a host is asked leaves nothing behind, and the session goes on."""
    async with running_stack(tmp_path) as stack, kdispatch.Connector(stack.url) as connector:
        undecided = await stack.host(lambda driver, stream: None)
        client = connector._client
        stack.drivers.append(client.driver)
        connecting = [asyncio.create_task(connector.open_connection(stack.service)) for _ in range(5)]
        await eventually(lambda: stack.held()["legs"], 10)  # two of each
        for task in connecting:
            await _give_up(task)
        await eventually(lambda: any(stack.held().values()), expected=False)
        assert not client._opening
        undecided.withdraw()
        async with await _server(stack, _echo):
            reader, writer = await connector.open_connection(stack.service)
            assert await _say(reader, writer, b"hello") == b"hello"
            writer.close()


async def test_cancelling_in_any_moment_leaves_nothing(tmp_path: Path) -> None:
    """At any moment at which a program gives up, also with the answer under way, nothing is left."""
    async with running_stack(tmp_path) as stack, kdispatch.Connector(stack.url) as connector:
        server = await _server(stack, _echo)
        stack.drivers += [connector._client.driver, server._host.driver]
        for moment in range(60):
            connecting = asyncio.create_task(connector.open_connection(stack.service))
            for _ in range(moment):
                await asyncio.sleep(0)
            if connecting.done():
                connecting.result()[1].close()
            else:
                await _give_up(connecting)
        await eventually(lambda: any(stack.held().values()), expected=False)
        assert not connector._client._opening
        await server.aclose()


async def test_cancelled_start_ends(tmp_path: Path) -> None:
    """A connector that is cancelled while it waits for its relay stops waiting."""
    async with service(silent) as relay, asyncio.timeout(10):

        async def enter() -> None:
            async with kdispatch.Connector(f"http://127.0.0.1:{relay.port}"):
                pass

        entering = asyncio.create_task(enter())
        await eventually(lambda: relay.accepted, 1)
        await _give_up(entering)
        await eventually(lambda: any("Uplink" in repr(task) for task in asyncio.all_tasks()), expected=False)


async def test_closed_connector_resets_what_it_has(tmp_path: Path) -> None:
    """Closing a connector resets its pending and its open connections."""
    decided = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decided.set()
        await reader.read()

    async with running_stack(tmp_path) as stack, asyncio.timeout(10):
        connector = kdispatch.Connector(stack.url)
        server = await _server(stack, connected)
        reader, _writer = await connector.open_connection(stack.service)
        await decided.wait()
        server._host.withdraw()
        await stack.host(lambda driver, stream: None)
        connecting = asyncio.create_task(connector.open_connection(stack.service))
        await eventually(lambda: stack.held()["legs"], 4)
        await connector.aclose()
        with pytest.raises(kdispatch.StreamReset):
            await connecting
        with pytest.raises(kdispatch.StreamReset):
            await reader.read()
        await server.aclose()


async def test_closed_connector_connects_no_more(tmp_path: Path) -> None:
    """A closed connector refuses further connections at once."""
    async with running_stack(tmp_path) as stack, await _server(stack, _echo):
        connector = kdispatch.Connector(stack.url)
        await connector.start()
        await connector.aclose()
        with pytest.raises(kdispatch.KdispatchError):
            await asyncio.wait_for(connector.open_connection(stack.service), 1)


_PROGRAM: Final = """
import asyncio, sys, kdispatch

async def echo(reader, writer):
    async for line in reader:
        writer.write(line)

async def main(relay, service):
    async with await kdispatch.start_server(echo, service, relay=relay):
        reader, writer = await kdispatch.open_connection(service, relay=relay)
        writer.write(b"hello\\n")
        print((await reader.readline()).decode(), end="")
        writer.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_connections_end_when_no_session_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A final refusal resets streams that waited for the next session, with its code, instead of letting them wait."""

    async def refused(_: Dialer) -> Upgraded:
        raise Refusal("not_permitted", "no", final=True)

    async with (
        running_stack(tmp_path) as stack,
        await _server(stack, _echo),
        kdispatch.Connector(stack.url) as connector,
    ):
        reader, writer = await connector.open_connection(stack.service)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        monkeypatch.setattr(Dialer, "upgrade", refused)
        connector._client.driver.abort()
        async with asyncio.timeout(10):
            with pytest.raises(kdispatch.StreamReset) as reset:
                await reader.read()
        assert reset.value.code == "not_permitted"
        assert connector.over


async def test_session_ends_with_the_loop(network: Network) -> None:
    """A program that connects and simply ends causes no warning."""
    name = await network.service()
    program = network.program("program", sys.executable, "-W", "always", "-c", _PROGRAM, network.url, name)
    assert await program.ended() == 0
    assert (program.out, program.err) == (b"hello\n", "")


async def test_failing_handler_resets_its_connection_only(tmp_path: Path) -> None:
    """A handler that raises resets its own connection, is reported to the loop, and does not affect another one."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"f":
            raise LookupError("a defect of the program")
        await _echo(reader, writer)

    async with running_stack(tmp_path) as stack, await _server(stack, connected), asyncio.timeout(20):
        good_reader, good = await kdispatch.open_connection(stack.service, relay=stack.url)
        bad_reader, bad = await kdispatch.open_connection(stack.service, relay=stack.url)
        good.write(b"g")
        bad.write(b"f")
        with pytest.raises(kdispatch.StreamReset) as caught:
            await bad_reader.read()
        assert caught.value.code == "cancelled"
        assert await _say(good_reader, good, b"still there") == b"still there"
        good.close()
        bad.close()
    assert [type(what["exception"]) for what in reported] == [LookupError]


async def _send_forever(writer: asyncio.StreamWriter) -> None:
    while True:
        await writer.drain()
        writer.write(bytes(64 * KIB))
        await asyncio.sleep(0)


@pytest.mark.parametrize("fails", [False, True], ids=["closes", "raises"])
async def test_last_words_of_a_handler(tmp_path: Path, *, fails: bool) -> None:
    """The answer of a handler that ends while the client still sends arrives, and then its end or the reset."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)
        writer.write(b"too large\n" * 10 + b"bye")
        if fails:
            raise ConnectionError

    async with running_stack(tmp_path) as stack, await _server(stack, connected), asyncio.timeout(20):
        for _ in range(20):
            reader, writer = await kdispatch.open_connection(stack.service, relay=stack.url)
            writer.write(bytes(MIB))
            with pytest.raises(kdispatch.StreamReset):
                await _send_forever(writer)
            assert await reader.readline() == b"too large\n"
            assert len(await reader.readexactly(90)) == 90
            assert await reader.readline() == b"bye"
            if fails:
                with pytest.raises(kdispatch.StreamReset):
                    await reader.read(1)
            else:
                assert await reader.read(1) == b""
            writer.close()


@pytest.mark.parametrize("fails", [False, True], ids=["closes", "raises"])
async def test_an_upload_before_the_answer_is_read(tmp_path: Path, *, fails: bool) -> None:
    """A client that sends 32 MB before it reads gets the whole answer of a handler that has ended meanwhile."""
    answer = bytes(3_000_000)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)
        writer.write(answer)
        if fails:
            raise ConnectionError

    async with running_stack(tmp_path) as stack, await _server(stack, connected), asyncio.timeout(15):
        reader, writer = await kdispatch.open_connection(stack.service, relay=stack.url)
        for _ in range(32):
            writer.write(bytes(1_000_000))
            await writer.drain()
        received = 0
        while received < len(answer):
            received += len(await reader.read(64 * KIB)) or len(answer)
        assert received == len(answer)
        writer.close()
