"""A read of one short message: the carrier's fast path gives what the general path does."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier, read_buffer
from kdispatch_protocol.wire.frames import DATA, MAX_OFFSET, TYPE_NAMES, Buffer, Frame, FrameReader, frame
from tests.aio.test_link import _link, _Owner
from tests.core.wire import ws_frame

_TYPES = st.sampled_from([DATA] * 6 + sorted(TYPE_NAMES))
_VALUES = st.sampled_from([0, 1, 1 << 32, MAX_OFFSET])
_FRAMES = st.builds(
    lambda type_, flags, number, value, payload: frame(type_, number, value, payload, flags),
    _TYPES, st.integers(0, 7), st.integers(1, 1 << 31), _VALUES, st.binary(max_size=112),
)  # fmt: skip
#: One frame, two of them, one that is cut or has too much, or anything.
_MESSAGES = st.one_of(
    _FRAMES, _FRAMES, st.tuples(_FRAMES, _FRAMES).map(b"".join), _FRAMES.map(lambda one: one[:-1]),
    _FRAMES.map(lambda one: one + b"x"), st.binary(min_size=1, max_size=130),
)  # fmt: skip


class _Reader(_Owner):
    """Owner of a carrier; what it passes on, or delivers in pieces, becomes frames. ``takes``: it passes on DATA."""

    def __init__(self, *, server: bool, takes: bool) -> None:
        super().__init__()
        self.decoder = FrameReader()
        self.takes = takes
        self.taken = 0
        self.frames: list[tuple[int, int, int, int, bytes]] = []
        self.failed = False
        self.carrier = WebSocketCarrier(self, server=server, buffer=read_buffer(), max_message=1 << 16)
        self.carrier.read_fast = self.read_fast

    def read_fast(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        if self.takes and number and value <= MAX_OFFSET:  # a session has no other streams and offsets
            self.taken += 1
            self.note([(DATA, flags, number, value, memoryview(payload))])
            return True
        return False

    def receive_piece(self, piece: Buffer, *, ends: bool) -> None:
        try:
            self.note(self.decoder.receive(piece, ends=ends))
        except RemoteProtocolError:
            self.failed = True

    def note(self, received: list[Frame]) -> None:
        self.frames += [
            (type_, flags, number, value, bytes(payload)) for type_, flags, number, value, payload in received
        ]

    def read(self, data: bytes) -> None:
        memory = self.carrier.get_buffer(-1)
        memory[: len(data)] = data
        self.carrier.buffer_updated(len(data))
        memory[: len(data)] = b"\xdb" * len(data)  # it is reused


@given(st.booleans(), st.lists(_MESSAGES, max_size=4), st.sampled_from([0, 0, 0, 1, 3]))
@settings(max_examples=300, deadline=None)
def test_what_is_passed_on_is_what_was_said(server: bool, messages: list[bytes], cut: int) -> None:
    """Frames, their order and errors are the same, whether a single DATA is passed on or not."""

    async def check() -> None:
        fast, general = _Reader(server=server, takes=True), _Reader(server=server, takes=False)
        for message in messages:
            wire = ws_frame(0x82, message, masked=server)
            for data in (wire[:cut], wire[cut:]):
                if data and not general.failed:
                    fast.read(data)
                    general.read(data)
            assert (fast.frames, fast.failed) == (general.frames, general.failed)
            assert fast.carrier.heard is not None

    asyncio.run(check())


async def test_a_short_data_that_comes_alone_is_passed_on() -> None:
    """A single DATA in a read of up to 1 KiB takes the fast path, but not a larger one, nor two in one read."""
    for server in (False, True):
        reader = _Reader(server=server, takes=True)
        wire = [ws_frame(0x82, frame(DATA, 1, 0, b"d" * size), masked=server) for size in (1, 109, 110, 1000, 1005)]
        for data in (*wire, wire[0] + wire[1]):
            reader.read(data)
        assert reader.taken == 4
        assert len(reader.frames) == 7


@given(st.booleans(), st.lists(_MESSAGES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_whole_message_is_taken_the_same_either_way(server: bool, messages: list[bytes]) -> None:
    """A link tells its owner the same of a message that comes in one call, and of one that comes as a piece."""

    async def check() -> None:
        told = []
        for whole in (True, False):
            link, owner, *_ = _link(Limits(), server=server)
            owner.bad = b"d"  # the owner refuses this one
            for message in messages:
                if whole:
                    link.receive_message(message)
                else:
                    link.receive_piece(message, ends=True)
                    link.receive_end()
            told.append((owner.messages, link._verdict))
            link.abort("", "")
        assert told[0] == told[1]

    asyncio.run(check())
