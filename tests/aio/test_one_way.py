"""One read of a session is one call into what handles it, and what it causes goes out by one flush."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import pytest

from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.uplink_session import UplinkSession
from kdispatch_protocol.session.aio.link import Link
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_relay.gate.agent_link import AgentLink
from tests.aio.twin import Program, Twin, settle, twin


@pytest.fixture
async def pair() -> AsyncIterator[Twin]:
    async with twin() as made:
        yield made


def _entered(target: object, read: Callable[[], None]) -> list[str]:
    """The methods of ``target`` that other objects call during ``read``, in order."""
    entered: list[str] = []

    def look(calls: FrameType, event: str, _: Any) -> None:
        caller = calls.f_back
        inside = caller is not None and caller.f_locals.get("self") is target
        if event == "call" and calls.f_locals.get("self") is target and not inside:
            entered.append(calls.f_code.co_name)

    sys.setprofile(look)
    try:
        read()
    finally:
        sys.setprofile(None)
    return entered


def _reads(link: Link, message: bytes) -> Callable[[], None]:
    """One read of a session's carrier that brings this message."""

    def read() -> None:
        link.receive_piece(bytearray(message), ends=True)
        link.receive_end()

    return read


async def _talking(pair: Twin) -> tuple[Program, Program, UplinkSession]:
    client, host = await pair.stream()
    client.transport.write(b"hello")
    await host.has(5)
    await settle()
    [uplink] = pair.client.sessions
    return client, host, uplink


async def test_a_read_enters_the_driver_once(pair: Twin) -> None:
    """A read of an agent that brings data, an answer and a question enters its driver once, and is answered in it."""
    client, _, uplink = await _talking(pair)
    stream = client.transport.stream
    out, size, given = stream.outbound, stream.inbound.limit // 4, uplink.link.carrier.given
    message = frame(frames.DATA, stream.number, stream.inbound.received, b"d" * size)
    message += frames.ack_frame(stream.number, out.sent, out.limit, fin=False)
    message += frame(frames.DATA, stream.number, stream.inbound.received + size, b"e" * size)
    message += frame(frames.PING, value=7)
    assert _entered(pair.client, _reads(uplink.link, message)) == ["receive_frames"]
    assert client.received == b"d" * size + b"e" * size
    assert uplink.link.carrier.given > given, "the PING was not answered within the read"


async def test_a_read_of_one_data_enters_the_driver_once(pair: Twin) -> None:
    """A read that is one DATA enters the driver once by its fast path, too."""
    client, _, uplink = await _talking(pair)
    stream = client.transport.stream
    start = stream.inbound.received

    def read() -> None:
        assert uplink.link_read_fast(0, stream.number, start, b"d" * 100)

    assert _entered(pair.client, read) == ["receive_frames_fast"]
    assert client.received == b"d" * 100


async def test_a_read_enters_the_agents_link_once(pair: Twin) -> None:
    """A read of the relay enters the session's owner once; besides, its link and its peer's collect what goes out."""
    client, host, _ = await _talking(pair)
    stream = client.transport.stream
    links = {link.session.process: link for link in pair.gate._links.values()}
    asking, asked = (links[driver.endpoint.process] for driver in (pair.client, pair.host))
    message = frame(frames.DATA, stream.number, stream.outbound.sent, b"d" * 100) + frame(frames.PING, value=7)
    given = {link: link.link.carrier.given for link in (asking, asked)}

    def owners(link: AgentLink, read: Callable[[], None]) -> list[str]:
        out = {"link_collect", "link_unsent"}  # the flush at the end of the read
        return [name for name in _entered(link, read) if name not in out]

    assert owners(asking, _reads(asking.link, message)) == ["link_read"]
    assert all(link.link.carrier.given > given[link] for link in (asking, asked))
    await host.has(105)


async def test_what_has_no_frame_is_one_read_too(pair: Twin) -> None:
    """A read that only begins a message enters the driver once, and sends nothing."""
    _, _, uplink = await _talking(pair)
    given = uplink.link.carrier.given

    def read() -> None:
        uplink.link.receive_piece(b"\0" * 300, ends=False)
        uplink.link.receive_end()

    assert _entered(pair.client, read) == ["receive_frames"]
    assert uplink.link.carrier.given == given


def test_the_drivers_of_both_ends_have_one_way_in() -> None:
    """What a link calls for a read has one name at both ends, and one fast path beside it."""
    for owner in (UplinkSession, AgentLink):
        assert callable(getattr(owner, "link_read", None))
    assert callable(getattr(EndpointDriver, "receive_frames_fast", None))
