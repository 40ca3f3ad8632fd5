"""The library: services as asyncio streams, with a relay on the same loop."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any, Final

import pytest

import kdispatch
from kdispatch_protocol.limits import Limits
from tests.net.harness import KIB, MIB, eventually
from tests.net.loop_stack import Stack, running_stack

pytestmark = pytest.mark.slow

_HASTY: Final = Limits(open_wait_start=0.2, open_wait_lost=0.2)  # an open waits no longer for a host to come back
_DATA: Final = random.Random(11).randbytes(5 * MIB)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the user of these tests has set or stored is not used."""
    for name in ("KDISPATCH_RELAY", "KDISPATCH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path / "config"))


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(64 * KIB):
        writer.write(piece)
        await writer.drain()


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    """Send all and the end of it, and receive meanwhile; returns what came."""

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    received, _ = await asyncio.gather(reader.read(), send())
    return received


def _server(stack: Stack, connected: Any) -> Any:
    return kdispatch.start_server(connected, stack.service, relay=stack.url, token=stack.token)


async def test_echo(tmp_path: Path) -> None:
    """5 MB come back whole over asyncio's own streams, and wait_closed() returns on both ends."""
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
    """A connection to a service that nobody offers is refused with the code that says so."""
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


async def test_cancelled_connecting_leaves_nothing(tmp_path: Path) -> None:
    """A program that gives up while a host is asked leaves nothing anywhere, and the session goes on."""
    silent = True
    async with running_stack(tmp_path) as stack, kdispatch.Connector(stack.url) as connector:
        await stack.host(lambda driver, stream: None)
        client = connector._client
        stack.drivers.append(client.driver)
        opening = [asyncio.create_task(connector.open_connection(stack.service)) for _ in range(5)]
        await eventually(lambda: stack.held()["legs"], 10)  # two of each
        for task in opening:
            task.cancel()
        assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*opening, return_exceptions=True))
        await eventually(lambda: any(stack.held().values()), expected=False)
        assert not client._opening
        del silent


async def test_failing_handler_resets_its_connection_only(tmp_path: Path) -> None:
    """A handler that raises resets its connection, is reported to the loop, and does no harm to another one."""
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
