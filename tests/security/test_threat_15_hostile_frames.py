"""Threat 15: hostile frames."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.core.wire import ws_frame
from tests.fuzz import parsers
from tests.net.harness import sizes
from tests.security.site import Agent, Caller, carried, made, offers, site

_PING: Final = frame(frames.PING)
#: The bytes sent, and the close code that ends the WebSocket.
_HOSTILE: Final = {
    "4 GiB": (ws_frame(0x82, b"", masked=True, length=1 << 32), 1009),
    "all bits of a length": (ws_frame(0x82, b"", masked=True, length=(1 << 64) - 1), 1009),
    "unmasked": (ws_frame(0x82, _PING, masked=False), 1002),
    "compressed": (ws_frame(0xC2, _PING, masked=True), 1002),
    "text": (ws_frame(0x81, b"hello", masked=True), 1003),
    "an unknown opcode": (ws_frame(0x83, _PING, masked=True), 1002),
    "a large ping": (ws_frame(0x89, bytes(126), masked=True), 1002),
    "a continuation of nothing": (ws_frame(0x80, _PING, masked=True), 1002),
    "a message inside another": (ws_frame(0x02, _PING, masked=True) * 2, 1002),
    "a frame of no type": (ws_frame(0x82, b"\xff" * 16, masked=True), 1008),
    "a frame that is cut off": (ws_frame(0x82, _PING[:7], masked=True), 1008),
    "a relay's frame": (ws_frame(0x82, frame(frames.WELCOME, payload=b"{}"), masked=True), 1008),
    "a late HELLO": (ws_frame(0x82, frame(frames.HELLO, payload=b"{}"), masked=True), 1008),
}


@pytest.mark.parametrize(("sent", "close"), _HOSTILE.values(), ids=_HOSTILE)
async def test_a_violation_ends_its_session(folder: Path, sent: bytes, close: int) -> None:
    """A protocol violation ends its session with a code, and the streams of other sessions go on."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
        Agent.of(relay, b"\x33" * 32) as hostile,
    ):
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web", access="public")
        assert await offers(host, 1, "ann/web", admin) == "OFFERED"
        at_host = await carried(client, host, 1, "ann/web")
        hostile._writer.write(sent)
        ended = False
        try:
            await hostile.end()
            ended = hostile.wire.closing is not None
        except TimeoutError:
            pass
        assert ended, "the session goes on"
        assert hostile.wire.closing is not None and hostile.wire.closing.code == close
        client.send(frame(frames.DATA, 1, 0, b"x"))
        assert (await host.next(frames.DATA))[2] == at_host


async def test_a_reused_number(folder: Path) -> None:
    """Reusing a stream number ends the session."""
    async with site(folder) as relay, Agent.of(relay) as agent:
        agent.open(1)
        await agent.next(frames.RESET)
        agent.open(1)
        await agent.end()
        assert agent.wire.closing is not None and agent.wire.closing.code == 1008


@pytest.mark.slow
@pytest.mark.parametrize("count", sizes(10_000, 100_000))
async def test_one_byte_fragments(folder: Path, count: int) -> None:
    """A message in thousands of one-byte fragments is read as one, and the relay answers others meanwhile."""
    async with site(folder) as relay, Agent.of(relay, b"\x11" * 32) as hostile, Agent.of(relay, b"\x22" * 32) as other:
        message = _PING * (count // len(_PING))
        pieces = [
            ws_frame(0x02 if not at else 0x00, message[at : at + 1], masked=True) for at in range(len(message) - 1)
        ]
        pieces.append(ws_frame(0x80, message[-1:], masked=True))
        loop, longest = asyncio.get_running_loop(), 0.0
        for at in range(0, len(pieces), 1000):
            hostile._writer.write(b"".join(pieces[at : at + 1000]))
            began = loop.time()
            other.send(_PING)
            await other.next(frames.PONG)
            longest = max(longest, loop.time() - began)
        await hostile.next(frames.PONG)
        print(f"{len(pieces)} fragments; another's PING took {longest * 1000:.0f} ms at the most")
        assert longest < 1.5


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes(data: bytes) -> None:
    """The parsers judge any bytes the same in pieces and at once, within the bounds."""
    parsers.check(data, Counter())


def test_the_corpus() -> None:
    """The parsers judge the fuzzer's corpus the same in pieces and at once, within the bounds."""
    for data in parsers.seeds():
        parsers.check(data, Counter())
