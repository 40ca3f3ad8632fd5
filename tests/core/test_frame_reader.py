"""The incremental decoder: pieces of messages in, frames out, for any division into pieces."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Frame, FrameReader, decode, frame
from kdispatch_protocol.wire.websocket import WebSocketReader
from tests.core.wire import cut, ws_frame

Plain = tuple[int, int, int, int, bytes]
SMALL = {
    frames.HELLO: (2, 0),
    frames.OPEN: (2, 1),
    frames.OPENED: (300, 1),
    frames.EARLY: (1, 1),
    frames.ACK: (8, 1),
    frames.FIN: (0, 1),
    frames.ATTACH: (2, 0),
    frames.RESET: (40, 0),
    frames.PING: (0, 0),
}


@st.composite
def valid_frames(draw: st.DrawFn) -> bytes:
    """One frame, a DATA as often as all the others."""
    if draw(st.booleans()):
        size = draw(st.integers(1, 60) | st.sampled_from([4095, 4096, 70_000]))
        flags = draw(st.integers(0, 3))
        return frame(frames.DATA, draw(st.integers(1, 9)), draw(st.integers(0, 1 << 40)), _pattern(size), flags)
    type_ = draw(st.sampled_from(sorted(SMALL)))
    size, numbered = SMALL[type_]
    return frame(type_, draw(st.integers(1, 9)) if numbered else 0, draw(st.integers(0, 1 << 40)), _pattern(size))


def _pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


messages: st.SearchStrategy[bytes] = st.lists(valid_frames(), min_size=1, max_size=5).map(b"".join)
places = st.lists(st.integers(0, 400) | st.integers(0, 150_000), max_size=10)


def plain(received: list[Frame]) -> list[Plain]:
    return [(type_, flags, stream, value, bytes(payload)) for type_, flags, stream, value, payload in received]


def read(reader: FrameReader, message: bytes, where: list[int]) -> list[Plain]:
    """Frames of a message in pieces, each in a buffer that is overwritten as soon as its frames were read."""
    received: list[Plain] = []
    pieces = list(cut(message, where))
    for place, piece in enumerate(pieces):
        memory = bytearray(piece)
        given = reader.receive(memory, ends=place == len(pieces) - 1)
        received += plain(given)
        del given
        memory[:] = b"\xdb" * len(memory)
    return received


def check(received: list[Plain], whole: list[Frame]) -> None:
    """Check that the frames are those of ``whole``, each complete, for any division into pieces."""
    assert received == plain(whole)


def problem(reader: FrameReader, message: bytes, where: list[int]) -> tuple[str, str] | None:
    """Why the decoder refuses it; empty if it does not."""
    try:
        read(reader, message, where)
    except RemoteProtocolError as error:
        return error.code, error.text
    return None


def refused(reader: FrameReader, piece: bytes, *, ends: bool) -> bool:
    """Whether the decoder refuses it, with the one error that it may raise and whose code ends the session."""
    try:
        reader.receive(piece, ends=ends)
    except RemoteProtocolError as error:
        return error.code == "protocol_error"
    return False


@pytest.mark.slow
@given(st.lists(st.tuples(messages, places), max_size=3))
@settings(max_examples=200)
def test_pieces_give_what_the_whole_gives(conversation: list[tuple[bytes, list[int]]]) -> None:
    """Cut anywhere, messages give the same frames as whole; nothing that is kept refers to the caller's buffer."""
    reader = FrameReader()
    for message, where in conversation:
        check(read(reader, message, where), decode(message))


@given(st.lists(messages.filter(lambda message: len(message) < 1000), min_size=1, max_size=3))
@settings(max_examples=40)
def test_byte_by_byte(conversation: list[bytes]) -> None:
    """One byte in each piece is enough."""
    reader = FrameReader()
    for message in conversation:
        check(read(reader, message, list(range(1, len(message)))), decode(message))


@given(st.booleans(), st.lists(st.tuples(messages, places), min_size=1, max_size=3), places)
@settings(max_examples=100)
def test_over_fragments_of_a_websocket(server: bool, sent: list[tuple[bytes, list[int]]], where: list[int]) -> None:
    """Messages in WebSocket fragments, read in pieces of any size, give the frames of each whole message."""
    wire = b""
    for message, fragments in sent:
        parts = list(cut(message, fragments))
        for place, part in enumerate(parts):
            first = (0 if place else 2) | (0x80 if place == len(parts) - 1 else 0)
            wire += ws_frame(first, part, masked=server) + ws_frame(0x89, b"ping", masked=server)
    ws, reader = WebSocketReader(server=server, max_message=1 << 20), FrameReader()
    received: list[Plain] = []
    for read_ in cut(wire, where):
        for piece, ends in ws.receive_data(read_):
            received += plain(reader.receive(piece, ends=ends))
    assert ws.closing is None
    check(received, [one for message, _ in sent for one in decode(message)])


@pytest.mark.slow
@given(st.binary(max_size=300) | messages.map(lambda m: m[:200]), places, st.integers(0, 3), st.integers(0, 255))
@example(b"", [0, 0], 0, 0)
@settings(max_examples=400)
def test_any_bytes_are_judged_as_the_whole_is(message: bytes, where: list[int], place: int, byte: int) -> None:
    """Any bytes give the same frames, or the same error, as the whole message."""
    spoiled = bytearray(message)
    if place < len(spoiled):
        spoiled[place] = byte
    message = bytes(spoiled)
    wrong = problem(FrameReader(), message, [])
    assert problem(FrameReader(), message, where) == wrong
    if wrong is None:
        check(read(FrameReader(), message, where), decode(message))


@pytest.mark.parametrize("size", [*range(1, 20), 70])
@pytest.mark.parametrize("type_", [frames.DATA, frames.RESET])
def test_a_frame_that_crosses_a_messages_end(type_: int, size: int) -> None:
    """A message that ends within a frame is refused, in any piece that the frame began in."""
    begun = frame(type_, 7, 0, b"x" * 60)[:size]
    assert refused(FrameReader(), begun, ends=True)
    for behind in (b"", frame(frames.PING)):
        reader = FrameReader()
        assert reader.receive(behind, ends=False) == []
        if size < 70:
            reader.receive(begun, ends=False)
            assert refused(reader, b"", ends=True)


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_an_empty_message(pieces: int) -> None:
    """A message without bytes is refused, in any number of pieces; an empty last piece of another message is not."""
    reader = FrameReader()
    assert reader.receive(frame(frames.PING), ends=False) == []
    assert len(reader.receive(b"", ends=True)) == 1
    for _ in range(pieces - 1):
        assert reader.receive(b"", ends=False) == []
    assert refused(reader, b"", ends=True)


def test_a_message_waits_for_its_last_byte() -> None:
    """The last byte of a message is awaited: servers in between write their own close frames at that place."""
    reader = FrameReader()
    message = frame(frames.PING) + frame(frames.DATA, 7, 100, b"abc", frames.BLOCKED)
    assert reader.receive(message[:-1], ends=False) == []
    assert reader.partial == len(message) - 1
    received = plain(reader.receive(message[-1:], ends=True))
    assert received == [(frames.PING, 0, 0, 0, b""), (frames.DATA, frames.BLOCKED, 7, 100, b"abc")]
    assert reader.partial == 0
