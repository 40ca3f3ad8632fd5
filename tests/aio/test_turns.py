"""How much of one session a relay processes in one turn of its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from kdispatch_protocol.limits import KIB
from kdispatch_protocol.session.aio.turns import Turns
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier, read_buffer
from kdispatch_protocol.wire.frames import DATA, PING, Buffer, frame
from kdispatch_protocol.wire.websocket import Closing
from tests.core.wire import ws_frame


class _Owner:
    """Counts what arrives, and in which turn of the loop."""

    def __init__(self, counts: _Owner | None = None) -> None:
        """``counts`` is the owner whose turns are counted, if not this one."""
        self.turn = 0
        self._counts = counts or self
        self.of_turn: dict[int, int] = {}  # bytes of messages
        self.idle = 0
        self.carrier: WebSocketCarrier | None = None
        self.frames = 1  # in each piece

    def receive_piece(self, piece: Buffer, *, ends: bool) -> None:
        assert self.carrier is not None
        self.carrier.found += self.frames
        turn = self._counts.turn
        self.of_turn[turn] = self.of_turn.get(turn, 0) + len(piece)

    def receive_end(self) -> None: ...

    def receive_message(self, message: Buffer) -> None:
        self.receive_piece(message, ends=True)

    def handle_idle(self, count: int) -> None:
        self.idle += count

    def may_send(self, size: int) -> bool:
        return True

    def handle_filled(self) -> None: ...

    def handle_drained(self) -> None: ...

    def handle_lost(self, closing: Closing | None, error: Exception | None) -> None: ...

    def count_turns(self) -> None:
        """Call itself in each turn."""
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.count_turns)


@asynccontextmanager
async def _flooded(
    carries: list[int], wire: bytes, owner: _Owner, turns: Turns | None = None, source: str = ""
) -> AsyncIterator[WebSocketCarrier]:
    """A server's carrier whose other end has sent all of ``wire``, as far as the kernel accepts it, before it reads."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # uvloop makes no TCP transport of a pair
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    loop = asyncio.get_running_loop()
    carrier = owner.carrier = WebSocketCarrier(
        owner, server=True, buffer=read_buffer(), max_message=256 * KIB, carries=carries,
        turn=None if turns is None else functools.partial(turns.take, source),
    )  # fmt: skip
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    carrier.attach(transport)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(wire):
            sent += theirs.send(wire[sent:])
    loop.call_soon(owner.count_turns)
    try:
        yield carrier
    finally:
        carrier.abort()
        theirs.close()
        await asyncio.sleep(0.01)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[None, None, None]], None]:
    """Run on one of the event loops."""
    maker = None
    if request.param == "uvloop":
        maker = pytest.importorskip("uvloop").new_event_loop

    def on_loop(work: Coroutine[None, None, None]) -> None:
        with asyncio.Runner(loop_factory=maker or asyncio.SelectorEventLoop) as runner:
            runner.run(work)

    return on_loop


_PINGS = ws_frame(0x82, frame(PING) * 100, masked=True) * 400  # 800 KB
_BULK = ws_frame(0x82, frame(DATA, 1, 0, bytes(64 * KIB)), masked=True) * 48  # 3 MB


def test_a_session_without_streams(run: Callable[[Coroutine[None, None, None]], None]) -> None:
    """A session that carries nothing is read 8 KiB in a turn of the loop, however much is there."""

    async def check() -> None:
        owner = _Owner()
        async with _flooded([], _PINGS, owner):
            async with asyncio.timeout(10):
                while sum(owner.of_turn.values()) < 100 * KIB:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
        assert max(owner.of_turn.values()) <= 8 * KIB

    run(check())


def test_a_session_of_bulk(run: Callable[[Coroutine[None, None, None]], None]) -> None:
    """Bulk is read up to 512 KiB in a turn, once the first reads had large frames."""

    async def check() -> None:
        owner = _Owner()
        async with _flooded([1], _BULK, owner) as carrier:
            async with asyncio.timeout(10):
                while sum(owner.of_turn.values()) < 1000 * KIB:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
            assert len(carrier.get_buffer(-1)) == 512 * KIB
        assert max(owner.of_turn.values()) <= 512 * KIB

    run(check())


def test_dense_reads_are_small_again(run: Callable[[Coroutine[None, None, None]], None]) -> None:
    """After bulk, a read of many small frames makes the next ones small, although there are streams."""

    async def check() -> None:
        owner = _Owner()
        async with _flooded([1], _BULK, owner) as carrier:
            async with asyncio.timeout(10):
                while len(carrier.get_buffer(-1)) < 64 * KIB:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
                owner.frames = 1000
                while len(carrier.get_buffer(-1)) > 8 * KIB:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)

    run(check())


def test_nothing_is_left_behind_streams(run: Callable[[Coroutine[None, None, None]], None]) -> None:
    """When a session no longer carries anything, its reads are small at once."""

    async def check() -> None:
        owner = _Owner()
        carries = [1]
        async with _flooded(carries, _BULK, owner) as carrier:
            async with asyncio.timeout(10):
                while len(carrier.get_buffer(-1)) < 64 * KIB:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
            carries.clear()
            assert len(carrier.get_buffer(-1)) == 8 * KIB

    run(check())


def test_many_sessions_of_many_frames(run: Callable[[Coroutine[None, None, None]], None]) -> None:
    """Of all sessions with many small frames one reads in each turn, and five of one source gain little."""

    async def check() -> None:
        turns = Turns()
        first = _Owner()
        owners = [first, *(_Owner(first) for _ in range(5))]
        sources = ["a", "b", "b", "b", "b", "b"]
        async with AsyncExitStack() as stack:
            for owner, source in zip(owners, sources, strict=True):
                owner.frames = 1000
                await stack.enter_async_context(_flooded([1], _PINGS, owner, turns, source))
            async with asyncio.timeout(20):
                while sum(owners[0].of_turn.values()) < 100 * KIB:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
            read = [sum(owner.of_turn.values()) for owner in owners]
            of_turn = Counter(turn for owner in owners for turn in owner.of_turn)
        started = sorted(of_turn)[len(of_turn) // 3]  # at first each has a read that is not yet known to be dense
        assert max(count for turn, count in of_turn.items() if turn > started) == 1
        assert sum(read[1:]) < 2 * read[0] + 5 * 8 * KIB  # a session comes back a turn after its own

    run(check())


async def test_a_rest() -> None:
    """A carrier that rests reads nothing for that time, and then goes on."""
    owner = _Owner()
    async with _flooded([], _PINGS, owner) as carrier:
        await asyncio.sleep(0)
        carrier.rest(0.1)
        await asyncio.sleep(0.02)
        before = sum(owner.of_turn.values())
        await asyncio.sleep(0.04)
        assert sum(owner.of_turn.values()) == before
        async with asyncio.timeout(20):
            while sum(owner.of_turn.values()) == before:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "wire",
    [
        ws_frame(0x89, b"", masked=True) * 500,
        ws_frame(0x8A, b"x", masked=True) * 500,
        ws_frame(0x02, b"", masked=True) + ws_frame(0x00, b"", masked=True) * 499,
    ],
    ids=["pings", "pongs", "empty fragments"],
)
async def test_frames_without_a_message(wire: bytes) -> None:
    """The owner learns how many WebSocket frames had no byte of a message."""
    owner = _Owner()
    async with _flooded([], wire, owner):
        async with asyncio.timeout(20):
            while owner.idle < 500:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)
    assert owner.idle == 500
