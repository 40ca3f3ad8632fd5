"""A session's carrier and its link: messages in pieces, cuts of slow and dead ends, and closing handshakes."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import socket
import time
import types

import pytest

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import KIB, Limits
from kdispatch_protocol.session.aio import link as link_module
from kdispatch_protocol.session.aio import websocket_carrier as carrier_module
from kdispatch_protocol.session.aio.carrier import Carrier
from kdispatch_protocol.session.aio.link import Link
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier, read_buffer
from kdispatch_protocol.session.liveness import Cut
from kdispatch_protocol.wire import websocket
from kdispatch_protocol.wire.frames import DATA, Buffer, Frame, frame
from kdispatch_protocol.wire.websocket import Closing, WebSocketReader
from tests.aio.twin import MemoryTransport, memory_pair, settle, until
from tests.aio.twin import websocket as over_websocket
from tests.core.wire import Messages, ws_frame

_BINARY = 0x82
_CLOSE = 0x88
_PING = 0x89


class _Owner:
    """Owner of a link, or of a bare carrier: records what it is told, and sends what it was given."""

    def __init__(self) -> None:
        self.link: Link
        self.messages: list[bytes] = []  # of a bare carrier whole ones, of a link the payloads of its frames
        self.pieces = 0
        self._under_way = b""
        self.to_send: list[Buffer] = []
        self.asked = 0
        self.drained = 0
        self.bad = b"bad"
        loop = asyncio.get_running_loop()
        self.link_over: asyncio.Future[tuple[str, str]] = loop.create_future()
        self.carrier_over: asyncio.Future[Closing | None] = loop.create_future()

    # --- of a link
    def link_read_fast(self, flags: int, number: int, value: int, payload: Buffer, /) -> bool:
        return False

    def link_read(self, received: list[Frame], now: float) -> None:
        for *_, payload in received:
            if payload == self.bad:
                raise RemoteProtocolError("A bad message.")
            self.messages.append(bytes(payload))

    def link_violated(self, code: str, text: str) -> None:
        self.link.close(code, text)

    def link_idle(self, count: int, now: float) -> None:
        pass

    def link_pieces(self, count: int, received: list[Frame], now: float) -> None:
        pass

    def link_unsent(self, size: int) -> None:
        pass

    def link_collect(self, most: int, now: float) -> list[Buffer]:
        return [self.to_send.pop(0)] if self.to_send else []

    def link_ask(self) -> None:
        self.asked += 1
        self.to_send.append(b"ask")

    def link_lost(self, code: str, text: str) -> None:
        self.link_over.set_result((code, text))

    # --- of a carrier
    def receive_piece(self, piece: Buffer, *, ends: bool) -> None:
        self.pieces += 1
        self._under_way += piece
        if ends:
            self.messages.append(self._under_way)
            self._under_way = b""

    def receive_message(self, message: Buffer) -> None:
        self.receive_piece(message, ends=True)
        self.receive_end()

    def handle_idle(self, count: int) -> None:
        pass

    def receive_end(self) -> None:
        pass

    def may_send(self, size: int) -> bool:
        return True

    def handle_filled(self) -> None:
        pass

    def handle_drained(self) -> None:
        self.drained += 1

    def handle_lost(self, closing: Closing | None, error: Exception | None) -> None:
        self.carrier_over.set_result(closing)


class _Far(asyncio.BufferedProtocol):
    """The other end's bytes, read as the frames of a client or a server."""

    def __init__(self, *, server: bool) -> None:
        self.reader = WebSocketReader(server=server, max_message=1 << 20)
        self._pieces = Messages(self.reader)
        self.messages: list[bytes] = []
        self._buffer = bytearray(4096)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.messages += self._pieces.feed(bytes(self._buffer[:nbytes]))


def _link(limits: Limits, *, server: bool = False) -> tuple[Link, _Owner, MemoryTransport, MemoryTransport, _Far]:
    """A link, its owner, the two ends of its connection, and the reader at the other end."""
    owner, far = _Owner(), _Far(server=not server)
    near, other = memory_pair()
    other.set_protocol(far)
    link = owner.link = Link(owner, limits, over_websocket(near, server=server, max_message=64 * KIB), server=server)
    link.carrier.start()
    return link, owner, near, other, far


def _carrier(
    *, server: bool = False, tls: bool = False
) -> tuple[WebSocketCarrier, _Owner, MemoryTransport, MemoryTransport]:
    owner = _Owner()
    near, other = memory_pair(tls=tls)
    carrier = WebSocketCarrier(owner, server=server, buffer=read_buffer(), max_message=64 * KIB)
    carrier.attach(near)
    return carrier, owner, near, other


def _data(payload: bytes) -> bytes:
    """A message of one frame."""
    return frame(DATA, 1, 0, payload)


def _is_full(carrier: Carrier | WebSocketCarrier) -> bool:
    """Whether it is full, checked at each call."""
    return carrier.full


# --- slow and dead ends ------------------------------------------------------------------------


_SLOW = Limits(slow_consumer=0.2)

_TICK = 0.005
"""Seconds a timer may look early: uvloop's clock and timers are whole milliseconds, each rounded by itself."""


async def test_slow_consumer() -> None:
    """A socket that accepts no byte for the limit of time is cut, and not earlier."""
    link, owner, near, _, _ = _link(_SLOW)
    near.takes = 1000
    owner.to_send = [b"x" * 10_000] * 3
    loop = asyncio.get_running_loop()
    began = loop.time()
    link.wake()
    async with asyncio.timeout(20):
        code, _text = await owner.link_over
    assert code == "slow_consumer"
    assert loop.time() - began >= _SLOW.slow_consumer - _TICK
    assert len(owner.to_send) == 2  # a full socket was given nothing more


@pytest.mark.slow
async def test_slow_but_alive() -> None:
    """A socket that accepts a little now and then is never cut."""
    link, owner, near, _, _ = _link(_SLOW)
    near.takes = 0
    owner.to_send = [b"x" * 10_000]
    link.wake()
    await until(lambda: link.carrier.full)
    for _ in range(12):  # three times as long as it may accept nothing
        await asyncio.sleep(_SLOW.slow_consumer / 4)
        near.takes = 1
        near.pump()
    assert not owner.link_over.done()
    near.takes = 1 << 20
    near.pump()
    assert not link.carrier.full


async def test_dead_peer() -> None:
    """A silent end is asked, and given up if it stays silent."""
    link, owner, _, _, far = _link(Limits(ping=0.1, dead_agent=0.15))
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(20):
        assert await owner.link_over == ("", "Nothing was heard from the other end.")
    assert loop.time() - began >= 0.15 - _TICK
    assert owner.asked == 1 and far.messages == [b"ask"]
    assert not link.carrier.open


@pytest.mark.slow
async def test_peer_that_answers() -> None:
    """Any byte shows life: an end that answers is asked again after the next silence, and kept."""
    _, owner, _, other, _ = _link(Limits(ping=0.1, dead_agent=0.5))
    for answers in range(1, 7):
        await until(lambda n=answers: owner.asked == n)  # type: ignore[misc]  # mypy can't infer a default's type
        other.write(ws_frame(_BINARY, _data(b"pong"), masked=False))
    assert not owner.link_over.done()
    assert owner.messages == [b"pong"] * len(owner.messages)


async def test_a_clock_that_jumped(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the wall clock jumps, an agent asks at once; silence then ends the session."""
    step = 0.0
    clock = types.SimpleNamespace(time=lambda: time.monotonic() + step)
    monkeypatch.setattr(link_module, "time", clock)
    monkeypatch.setattr(link_module, "_CLOCK_EVERY", 0.02)
    monkeypatch.setattr("kdispatch_protocol.session.liveness._PROBE", 0.05)
    _, owner, _, other, _ = _link(Limits())
    await asyncio.sleep(0.05)
    assert owner.asked == 0
    step = 3600.0
    await until(lambda: owner.asked == 1)
    other.write(ws_frame(_BINARY, _data(b"pong"), masked=False))
    await asyncio.sleep(0.1)
    assert owner.asked == 1 and not owner.link_over.done()
    step = 0.0  # a step back counts, too
    async with asyncio.timeout(20):
        assert (await owner.link_over)[1] == "Nothing was heard from the other end."


async def test_websocket_pings_keep_nobody_from_asking() -> None:
    """Pings of a box in between show life, but an agent that receives no message still asks."""
    link, owner, _, other, far = _link(Limits(ping=0.1, dead_agent=5.0))
    began = time.monotonic()
    for _ in range(20):
        other.write(ws_frame(_PING, b"", masked=False))
        await asyncio.sleep(0.02)
    assert not owner.link_over.done() and link.carrier.open
    assert 2 <= owner.asked <= (time.monotonic() - began) / 0.1
    assert far.messages[: owner.asked - 1] == [b"ask"] * (owner.asked - 1)  # the last one may be under way


@pytest.mark.slow
async def test_who_only_listens_asks() -> None:
    """An agent that only receives messages asks, so that both directions are used; one that does both does not."""
    link, owner, _, other, _ = _link(Limits(ping=0.3))
    began = time.monotonic()
    while not owner.asked:
        other.write(ws_frame(_BINARY, _data(b"news"), masked=False))
        await asyncio.sleep(0.02)
    assert time.monotonic() - began >= 0.3 - _TICK
    before = owner.asked
    for _ in range(30):
        other.write(ws_frame(_BINARY, _data(b"news"), masked=False))
        link.carrier.send([_data(b"answer")])
        await asyncio.sleep(0.02)
    assert owner.asked <= before + 1  # that one was due when the answers began


async def test_a_ping_of_its_own() -> None:
    """A session may ask sooner than its limits say."""
    owner = _Owner()
    near, _ = memory_pair()
    link = owner.link = Link(owner, Limits(), over_websocket(near, max_message=64 * KIB), server=False, ping=0.05)
    link.carrier.start()
    await until(lambda: owner.asked == 1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed", "said", "given up", "unanswered", "slept"])
async def test_the_course_of_a_session(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end a session reports its duration, the silence before, and whether it was cut."""
    step = 0.0
    monkeypatch.setattr(link_module, "time", types.SimpleNamespace(time=lambda: time.monotonic() + step))
    link, owner, near, other, _ = _link(Limits(ping=1.2, dead_agent=1.6))
    await asyncio.sleep(0.2)
    other.write(ws_frame(_BINARY, _data(b"hello"), masked=False))
    await asyncio.sleep(0.8)
    assert link.course.cut is None and link.course.lasted >= 1.0 - 2 * _TICK
    match how:
        case "said":
            other.write(ws_frame(_CLOSE, websocket.close_payload(1000, ""), masked=False))
        case "given up":
            link.abort("slow_consumer", "")
        case "unanswered":
            pass
        case _:
            step = 60.0 if how == "slept" else 0.0
            near.abort()
    async with asyncio.timeout(20):
        await owner.link_over
    course = link.course
    assert course.cut is {"closed": Cut.CLOSED, "unanswered": Cut.UNANSWERED}.get(how)
    if how == "closed":
        assert 0.7 < course.silence < 1.2 and course.lasted == pytest.approx(course.silence + 0.2, abs=0.16)
    elif how == "unanswered":
        assert course.silence == pytest.approx(1.2, abs=0.32)


async def test_relay_only_listens() -> None:
    """The relay asks nothing; it gives up a silent agent after its own time."""
    _, owner, _, _, far = _link(Limits(dead_relay=0.1), server=True)
    async with asyncio.timeout(20):
        assert (await owner.link_over)[0] == ""
    assert owner.asked == 0 and not far.messages


# --- pings of the WebSocket -----------------------------------------------------------------------


async def test_latest_ping() -> None:
    """Of many pings in one read the latest is answered."""
    _, _, near, other = _carrier()
    pings = b"".join(ws_frame(_PING, payload, masked=False) for payload in (b"1", b"2", b"3"))
    other.write(pings)
    await settle(5)
    assert len(near.sent) == 2 + 4 + 1  # one pong of one byte
    assert near.sent[0] == 0x8A
    assert near.sent[6] ^ near.sent[2] == ord("3")


async def test_no_pong_while_full() -> None:
    """An end that does not read gets no pongs, because they would pile up and look like progress."""
    carrier, owner, near, other = _carrier()
    near.takes = 0
    carrier.send([b"x" * 1000])
    assert _is_full(carrier)
    waits = carrier.unsent
    for _ in range(100):
        other.write(ws_frame(_PING, b"p" * 125, masked=False))
    await settle(5)
    assert carrier.unsent == waits
    near.takes = 1 << 20
    near.pump()
    assert not _is_full(carrier) and owner.drained == 1
    other.write(ws_frame(_PING, b"now", masked=False))
    await settle(5)
    assert len(near.sent) == waits + 2 + 4 + 3


# --- goodbyes -------------------------------------------------------------------------------------------


async def test_close_by_this_end() -> None:
    """Queued data goes out before the close frame; the answer to that ends the connection."""
    link, owner, near, other, far = _link(Limits())
    owner.to_send = [b"last"]
    link.close("drain", "moving")
    await settle(5)
    assert far.messages == [b"last"]
    assert far.reader.closing == Closing(1008, "drain", by_peer=True)
    assert not near.lost.done() and not link.carrier.open
    other.write(ws_frame(_BINARY, _data(b"crossing"), masked=False))
    other.write(ws_frame(_CLOSE, b"\x03\xf0", masked=False))
    async with asyncio.timeout(20):
        assert await owner.link_over == ("drain", "moving")
    assert owner.messages == []  # this end reads no more


async def test_close_by_the_other_end() -> None:
    """A close frame is answered with its own code, and ends the session without a code of ours."""
    link, owner, near, other, far = _link(Limits())
    other.write(ws_frame(_CLOSE, websocket.close_payload(1001, "away"), masked=False))
    async with asyncio.timeout(20):
        assert await owner.link_over == ("", "The other end closed the session: away.")
    assert far.reader.closing == Closing(1001, "away", by_peer=True)
    assert near.lost.done() and not link.carrier.open


async def test_close_that_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that does not answer the close frame gets a moment, no more."""
    monkeypatch.setattr(carrier_module, "_CLOSE_PATIENCE", 0.02)
    link, owner, _, _, _ = _link(Limits())
    link.close("", "")
    async with asyncio.timeout(20):
        assert await owner.link_over == ("", "")


async def test_loss_without_goodbye() -> None:
    """A connection that ends without a close frame is reported as such."""
    _, owner, _, other, _ = _link(Limits())
    other.abort()
    async with asyncio.timeout(20):
        assert await owner.link_over == ("", "The connection was closed.")


#: A close frame "going away", as a server in between writes it into a tunnel that it is about to end.
_GOING_AWAY = b"\x03\xe9"


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("behind", [0, 1, 1000, 40_000])
@pytest.mark.parametrize("at", [1, 20, 5000, 30_000])
async def test_a_close_frame_of_somebody_in_between(server: bool, at: int, behind: int) -> None:
    """If Caddy writes its close frame amid passed data, and passes on more, none of it is taken for data."""
    link, owner, _, other, _ = _link(Limits(), server=server)
    sound = ws_frame(_BINARY, _data(b"sound"), masked=server)
    other.write(sound)
    await settle(2)
    payload = random.Random(7).randbytes(20_000)
    rest = b"".join(ws_frame(_BINARY, _data(payload), masked=server) for _ in range(4))
    wire = rest[:at] + ws_frame(_CLOSE, _GOING_AWAY, masked=server) + rest[at : at + behind]
    other.write(wire[: at // 2])
    await settle(2)
    other.write(wire[at // 2 :])
    await settle(5)
    other.close()
    async with asyncio.timeout(20):
        await owner.link_over
    assert set(owner.messages) <= {b"sound", payload}
    assert owner.messages[:1] == [b"sound"]
    assert link.partial <= 20_016


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "The connection was lost: Broken pipe."),
        (
            ConnectionResetError("Cannot write to a closing transport."),
            "The connection was lost: Cannot write to a closing transport.",
        ),
        (ConnectionResetError(), "The connection was lost: ConnectionResetError."),
    ],
)
async def test_loss_with_an_error(error: OSError, text: str) -> None:
    """The system's reason is in a sentence of its own, without its number."""
    link, owner, _, _, _ = _link(Limits())
    assert isinstance(link.carrier, WebSocketCarrier)
    link.carrier.connection_lost(error)
    async with asyncio.timeout(20):
        assert await owner.link_over == ("", text)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(ws_frame(0xC2, b"x", masked=True), 1002, id="reserved bit"),
        pytest.param(ws_frame(_BINARY, b"x", masked=False), 1002, id="no mask"),
        pytest.param(ws_frame(0x81, b"x", masked=True), 1003, id="text"),
        pytest.param(ws_frame(_BINARY, b"x", masked=True, length=65 * KIB), 1009, id="too large"),
    ],
)
async def test_violation(data: bytes, code: int) -> None:
    """A broken frame is answered with a close frame that says why; what came in the same read is dropped."""
    _, owner, near, other, far = _link(Limits(), server=True)
    other.write(ws_frame(_BINARY, _data(b"good"), masked=True) + data + ws_frame(_BINARY, _data(b"more"), masked=True))
    await settle(5)
    assert far.reader.closing is not None and far.reader.closing.code == code
    assert owner.messages == []
    other.close()
    async with asyncio.timeout(20):
        assert (await owner.link_over)[0] == "protocol_error"
    assert near.lost.done()


async def test_bad_message() -> None:
    """A message that breaks the protocol ends the session with that code, and nothing after it is processed."""
    _, owner, _, other, far = _link(Limits())
    messages = [ws_frame(_BINARY, _data(message), masked=False) for message in (b"good", b"bad", b"good")]
    other.write(b"".join(messages))
    await settle(5)
    assert owner.messages == [b"good"]
    assert far.reader.closing == Closing(1008, "protocol_error", by_peer=True)
    other.abort()
    assert await owner.link_over == ("protocol_error", "A bad message.")


# --- messages -----------------------------------------------------------------------------------------------


async def test_messages_cut_anywhere() -> None:
    """Messages that a real socket delivers in pieces of any size arrive in order, and large ones in pieces."""
    chance = random.Random(7)
    messages = [chance.randbytes(chance.choice((1, 125, 126, 4000, 65_536, 200_000))) for _ in range(60)]
    wire = b"".join(ws_frame(_BINARY, message, masked=True) for message in messages)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    owner = _Owner()
    carrier = WebSocketCarrier(owner, server=True, buffer=read_buffer(), max_message=256 * KIB)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    early = chance.randrange(100)
    carrier.attach(transport, wire[:early])
    with theirs:
        position = early
        async with asyncio.timeout(20):
            while position < len(wire):
                size = chance.choice((1, 3, 7, 1000, 30_000, 100_000))
                await loop.sock_sendall(theirs, wire[position : position + size])
                position += size
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
            await until(lambda: len(owner.messages) == len(messages))
    assert hashlib.sha256(b"".join(owner.messages)).digest() == hashlib.sha256(b"".join(messages)).digest()
    assert owner.pieces > len(messages) + 20
    assert await owner.carrier_over is None


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_full_and_empty_again(tls: bool) -> None:
    """A carrier is full only while bytes wait, also over transports that are full at their mark."""
    carrier, owner, near, _ = _carrier(tls=tls)
    assert not _is_full(carrier)
    for round_ in range(1, 4):
        near.takes = 0
        carrier.send([b"x" * 1000])
        assert _is_full(carrier) and carrier.unsent >= 1000
        near.takes = 1 << 20
        near.pump()
        assert not _is_full(carrier) and carrier.unsent == 0
        assert owner.drained == round_


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_everything_goes_out(tls: bool) -> None:
    """A link sends all that is queued, also while its socket is full at times."""
    owner, far = _Owner(), _Far(server=True)
    near, other = memory_pair(tls=tls)
    other.set_protocol(far)
    link = Link(owner, Limits(), over_websocket(near, max_message=64 * KIB), server=False)
    link.carrier.start()
    owner.to_send = [bytes([n]) * 1000 for n in range(50)]
    link.wake()
    await until(lambda: len(far.messages) == 50)
    assert [message[0] for message in far.messages] == list(range(50))
