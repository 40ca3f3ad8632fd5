"""What a link sends at once, past its batches."""

from __future__ import annotations

import asyncio

import pytest

from kdispatch_protocol.aio.link import Link
from kdispatch_protocol.limits import Limits
from tests.aio.test_link import _CLOSE, _SLOW, _TICK, _link
from tests.aio.twin import settle
from tests.core.wire import ws_frame


def _is_free(link: Link) -> bool:
    """Asked anew each time."""
    return link.takes(1)


async def test_slow_consumer_of_what_is_sent_at_once() -> None:
    """A socket that a message sent at once has filled is cut as any other is, counted from then on."""
    link, owner, near, _, _ = _link(_SLOW)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(_SLOW.slow_consumer)  # this does not count
    near.takes = 1000
    began = loop.time()
    assert link.send_now([b"x" * 10_000]) and not _is_free(link)
    assert not link.send_now([b"y"])
    async with asyncio.timeout(2):
        assert (await owner.link_over)[0] == "slow_consumer"
    assert loop.time() - began >= _SLOW.slow_consumer - _TICK


async def test_send_now() -> None:
    """A free link sends without a turn of the loop, in order with its batches; a full one says no."""
    link, owner, near, _, far = _link(Limits())
    assert _is_free(link) and link.send_now([b"one, ", b"two"])
    assert not _is_free(link) and not link.send_now([b"lost"])  # in memory a write waits for the loop's next turn
    near.pump()
    owner.to_send = [b"a batch"]
    link.flush()
    near.pump()
    assert _is_free(link) and link.send_now([b"three"])
    await settle(5)
    assert far.messages == [b"one, two", b"a batch", b"three"]


async def test_a_slow_socket_gets_no_more_than_a_batch() -> None:
    """What is more than a slow socket drains in 20 ms waits for its turn, however free the socket is."""
    link, _, _, _, far = _link(Limits())
    link._pace.batch = 1000
    assert not link.takes(1001) and not link.send_now([b"head", b"x" * 1001])
    assert link.takes(1000) and link.send_now([b"head", b"x" * 1000])
    await settle(5)
    assert far.messages == [b"head" + b"x" * 1000]


@pytest.mark.parametrize("how", ["close", "abort", "lost", "closed by the other end"])
async def test_send_now_when_it_is_over(how: str) -> None:
    """Behind its end a link sends nothing at once, and says so."""
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
    assert not _is_free(link) and not link.send_now([b"late"])
    assert bytes(near.sent) + near._waits == had
    await settle(5)
    assert far.messages == []
