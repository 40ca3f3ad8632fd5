"""The proxy breaks where a test tells it to, and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from kdispatch_protocol.wire.websocket import BINARY, frame_head
from tests.faults.heads import Head, Heads
from tests.faults.proxy import Cut, FaultProxy, Into, fault_proxy
from tests.net.harness import KIB, eventually
from tests.net.tcp import Tcp, service

_REQUEST: Final = b"GET /api/v1/tunnel HTTP/1.1\r\nHost: x\r\n\r\n"
_MASK: Final = b"mask"


def _frame(size: int) -> bytes:
    return frame_head(BINARY, size, _MASK) + bytes(size)


@dataclass
class _Far:
    """The bytes that arrived behind the proxy, one entry per connection, and how each connection ended."""

    port: int = 0
    got: list[bytearray] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    async def __call__(self, tcp: Tcp) -> None:
        got = bytearray()
        self.got.append(got)
        try:
            async for chunk in tcp.chunks():
                got += chunk
                await tcp.send(chunk)
        except ConnectionResetError:
            self.ends.append("reset")
        else:
            self.ends.append("end")


@asynccontextmanager
async def _line() -> AsyncIterator[tuple[FaultProxy, _Far]]:
    far = _Far()
    async with service(far) as running, fault_proxy(running.port) as proxy:
        yield proxy, far


async def _rest(tcp: Tcp) -> tuple[bytes, str]:
    """Return the bytes up to the end, and the kind of end."""
    got = bytearray()
    try:
        async for chunk in tcp.chunks():
            got += chunk
    except ConnectionResetError:
        return bytes(got), "reset"
    return bytes(got), "end"


def test_heads_are_found_however_the_bytes_come() -> None:
    """Positions and sizes of WebSocket heads do not depend on how the bytes are split into pieces."""
    payloads = [0, 5, 125, 126, 40_000, 65_535, 65_536, 16]
    data = memoryview(_REQUEST + b"".join(_frame(size) for size in payloads))
    expected, position = [], len(_REQUEST)
    for size in payloads:
        head = len(frame_head(BINARY, size, _MASK))
        expected.append(Head(position, head, size))
        position += head + size
    for step in (1, 7, 4096, len(data)):
        heads = Heads()
        found = [head for at in range(0, len(data), step) for head in heads.feed(data[at : at + step])]
        assert found == expected


async def test_nothing_breaks_by_itself() -> None:
    """Without a cut both directions pass completely and end one after the other."""
    async with _line() as (proxy, far), await Tcp.connect(proxy.port) as tcp:
        data = _REQUEST + bytes(100 * KIB)
        await tcp.send(data)
        tcp.finish()
        assert await _rest(tcp) == (data, "end")
        await eventually(lambda: far.ends, ["end"])


@pytest.mark.parametrize("after", [0, 1, len(_REQUEST) + 1, 100_000])
async def test_a_cut_is_exact(after: int) -> None:
    """Exactly the bytes before the cut arrive, then both ends are reset."""
    async with _line() as (proxy, far):
        struck = proxy.add(Cut("up", after))
        async with await Tcp.connect(proxy.port) as tcp:
            sending = asyncio.create_task(tcp.send(_REQUEST + bytes(200_000)))
            assert (await _rest(tcp))[1] == "reset"
            await asyncio.gather(sending, return_exceptions=True)
        await struck
        await eventually(lambda: far.ends, ["reset"])
        assert bytes(far.got[0]) == (_REQUEST + bytes(200_000))[:after]


@pytest.mark.parametrize("into", ["head", "frame"])
@pytest.mark.parametrize("by", range(0, 40, 7))
async def test_a_cut_falls_into_a_head(into: Into, by: int) -> None:
    """A cut into a head leaves part of the first head after its byte, or part of the kdispatch header."""
    first, second = _frame(70), _frame(1000)
    async with _line() as (proxy, far), await Tcp.connect(proxy.port) as tcp:
        struck = proxy.add(Cut("up", len(_REQUEST) + 1, into, by))
        await tcp.send(_REQUEST + first + second)
        await struck
        await eventually(lambda: far.ends, ["reset"])
        left = len(far.got[0]) - len(_REQUEST + first)
        head = len(second) - 1000
        assert left in (range(1, head) if into == "head" else range(head + 1, head + 16))


async def test_a_hole_eats_and_then_cuts() -> None:
    """From its byte on a black hole passes nothing in either direction, not even an end; new connections pass."""
    async with _line() as (proxy, far), await Tcp.connect(proxy.port) as eaten:
        await eaten.send(_REQUEST)
        assert await eaten.receive_exactly(len(_REQUEST)) == _REQUEST
        struck = proxy.add(Cut("up", 3, eats=0.3))
        await eaten.send(b"abcdef")
        await struck
        began = time.monotonic()
        await eaten.send(b"more")
        async with await Tcp.connect(proxy.port) as passes:
            await passes.send(b"hello")
            assert await passes.receive_exactly(5) == b"hello"
            passes.finish()
            assert await _rest(passes) == (b"", "end")
        assert far.ends == ["end"]
        assert await _rest(eaten) in ((b"", "reset"), (b"abc", "reset"))  # the echo may be dropped, too
        assert 0.2 < time.monotonic() - began < 5
        await eventually(lambda: far.ends, ["end", "reset"])
        assert bytes(far.got[0]) == _REQUEST + b"abc"


async def test_a_cut_waits_for_a_tunnel() -> None:
    """A REST request passes without taking a tunnel's cut, and one tunnel takes one cut."""
    async with _line() as (proxy, far):
        first, second = proxy.add(Cut("up", 50)), proxy.add(Cut("up", 60))
        async with await Tcp.connect(proxy.port) as look_up:
            await look_up.send(b"GET /api/v1/whoami HTTP/1.1\r\n" + bytes(100))
            look_up.finish()
            assert (await _rest(look_up))[1] == "end"
        for struck in (first, second):
            assert not struck.done()
            async with await Tcp.connect(proxy.port) as tcp:
                await tcp.send(_REQUEST + bytes(100))
                assert (await _rest(tcp))[1] == "reset"
            await struck
        await eventually(lambda: [len(got) for got in far.got[1:]], [50, 60])


async def test_a_fresh_cut_is_for_the_next_tunnel() -> None:
    """A cut of a new session resets the existing tunnel, and cuts the next one in its first bytes."""
    async with _line() as (proxy, far), await Tcp.connect(proxy.port) as there, await Tcp.connect(proxy.port) as next_:
        await there.send(_REQUEST)
        await there.receive_exactly(len(_REQUEST))
        struck = proxy.add(Cut("up", 0, "head", fresh=True))
        assert (await _rest(there))[1] == "reset"
        await next_.send(_REQUEST + _frame(100))
        await struck
        await eventually(lambda: far.ends, ["reset", "reset"])
        assert len(far.got[1]) == len(_REQUEST) + 1


async def test_an_unstruck_cut_goes_to_the_next_tunnel() -> None:
    """A tunnel that ends before its cut leaves it to the next, and without a listener a connection is reset."""
    async with _line() as (proxy, far):
        struck = proxy.add(Cut("up", 50))
        async with await Tcp.connect(proxy.port) as tcp:
            await tcp.send(_REQUEST)
            await tcp.receive_exactly(len(_REQUEST))
            proxy.cut_now()
            assert (await _rest(tcp))[1] == "reset"
        await eventually(lambda: far.ends, ["reset"])
        assert not struck.done()
        async with await Tcp.connect(proxy.port) as tcp:
            await tcp.send(_REQUEST + bytes(100))
            await struck
    async with service(far) as gone:
        pass
    async with fault_proxy(gone.port) as proxy, await Tcp.connect(proxy.port) as tcp:
        assert (await _rest(tcp))[1] == "reset"
