"""What a link sends at once, outside its batches."""

from __future__ import annotations

import asyncio

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.aio.link import Link
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from tests.aio.test_link import _CLOSE, _SLOW, _TICK, _link
from tests.aio.twin import settle
from tests.core.wire import ws_frame

_SIZES = pytest.mark.parametrize("size", [1, 109, 110, 2000])
_ENDS = pytest.mark.parametrize("server", [False, True], ids=["client", "server"])


def _sends(link: Link, payload: Buffer = b"x", value: int = 0) -> bool:
    return link.carrier.send_fast(0, 1, value, payload)


async def test_slow_consumer_of_what_is_sent_at_once() -> None:
    """A socket filled by a message that was sent at once is cut like any other, counted from that moment."""
    link, owner, near, _, _ = _link(_SLOW)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(_SLOW.slow_consumer)  # this does not count
    near.takes = 1000
    began = loop.time()
    assert _sends(link, b"x" * 10_000)
    assert not _sends(link)
    async with asyncio.timeout(20):
        assert (await owner.link_over)[0] == "slow_consumer"
    assert loop.time() - began >= _SLOW.slow_consumer - _TICK


@_SIZES
@_ENDS
async def test_sent_at_once(size: int, server: bool) -> None:
    """A free link sends without a turn of the loop, in order with its batches; a full one refuses."""
    link, owner, near, _, far = _link(Limits(), server=server)
    assert link.carrier.send_fast(frames.BLOCKED, 7, 1 << 40, b"o" * size)
    assert not _sends(link, b"lost")  # in memory a write waits for the loop's next turn
    near.pump()
    owner.to_send = [b"a batch"]
    link.flush()
    near.pump()
    assert _sends(link, memoryview(b"three"), 9)
    await settle(5)
    first = frames.frame(frames.DATA, 7, 1 << 40, b"o" * size, frames.BLOCKED)
    assert far.messages == [first, b"a batch", frames.frame(frames.DATA, 1, 9, b"three")]
    assert link.carrier.given == len(near.sent)


async def test_a_slow_socket_gets_no_more_than_a_batch() -> None:
    """Data above what a slow socket drains in 20 ms waits for its turn, even if the socket is free."""
    link, _, _, _, far = _link(Limits())
    link._pace.batch = 1000
    assert not _sends(link, b"x" * 1001)
    assert _sends(link, b"x" * 1000)
    await settle(5)
    assert far.messages == [frames.frame(frames.DATA, 1, 0, b"x" * 1000)]


@_SIZES
@pytest.mark.parametrize("how", ["close", "abort", "lost", "closed by the other end"])
async def test_nothing_is_sent_when_it_is_over(how: str, size: int) -> None:
    """After its end a link sends nothing at once, and says so."""
    link, _, near, other, far = _link(Limits())
    match how:
        case "close":
            link.close("drain")
        case "abort":
            link.abort("", "enough")
        case "lost":
            other.abort()
            await near.lost
        case _:
            other.write(ws_frame(_CLOSE, b"\x03\xe8", masked=False))
            other.pump()
    had = bytes(near.sent) + near._waits
    assert not _sends(link, b"l" * size)
    assert bytes(near.sent) + near._waits == had
    await settle(5)
    assert far.messages == []
