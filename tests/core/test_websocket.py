from __future__ import annotations

import struct
import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side

from kdispatch_protocol.wire.websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    Closing,
    Piece,
    WebSocketReader,
    close_payload,
    frame_head,
    mask_parts,
)
from tests.core.wire import KEY, Messages, cut, ws_frame

FIN = 0x80
CONT, TEXT = 0x0, 0x1
SIZES = st.integers(0, 40) | st.sampled_from([125, 126, 127, 4095, 4096, 4200, 65535, 65536, 70000])
payloads = st.builds(lambda size, byte: bytes((byte,)) * size, SIZES, st.integers(0, 255))
small = st.binary(max_size=125)
# One step of a conversation: a message in some fragments, or a control frame.
Step = tuple[str, list[bytes]]
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("message"), st.lists(payloads, min_size=1, max_size=4)),
        st.tuples(st.just("ping"), st.lists(small, min_size=1, max_size=1)),
        st.tuples(st.just("pong"), st.lists(small, min_size=1, max_size=1)),
    ),
    max_size=6,
)
places = st.lists(st.integers(0, 140_000), max_size=8)
roles = pytest.mark.parametrize("server", [True, False], ids=["at the server", "at the client"])
reads = pytest.mark.parametrize("whole", [False, True], ids=["receive_data", "receive_data_fast"])


def reader_of(*, server: bool, max_message: int = 1 << 20) -> WebSocketReader:
    return WebSocketReader(server=server, max_message=max_message)


def theirs(*, server: bool, max_message: int | None = 1 << 20) -> Protocol:
    """The websockets package's end in the same role."""
    return Protocol(Side.SERVER if server else Side.CLIENT, max_size=max_message)


def serialized(conversation: Sequence[Step], between: Sequence[Step], *, server: bool) -> bytes:
    """The conversation as the websockets package writes it, with ``between`` put among the fragments."""
    waiting = [Frame(Opcode.PING if kind == "ping" else Opcode.PONG, parts[0]) for kind, parts in between]
    frames = []
    for kind, parts in conversation:
        if kind != "message":
            frames.append(Frame(Opcode.PING if kind == "ping" else Opcode.PONG, parts[0]))
            continue
        for place, part in enumerate(parts):
            frames.append(Frame(Opcode.CONT if place else Opcode.BINARY, part, fin=place == len(parts) - 1))
            if waiting:
                frames.append(waiting.pop())
    return b"".join(frame.serialize(mask=server) for frame in frames)


def heard_by_theirs(protocol: Protocol) -> tuple[list[bytes], list[bytes], int | None]:
    """Whole messages, pings, and the code of the close frame that arrived or went out."""
    messages, pings = [], []
    under_way = b""
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode is Opcode.PING:
            pings.append(bytes(event.data))
        elif event.opcode in {Opcode.BINARY, Opcode.TEXT, Opcode.CONT}:
            under_way += event.data
            if event.fin:
                messages.append(under_way)
                under_way = b""
    closed = protocol.close_sent or protocol.close_rcvd
    return messages, pings, closed.code if closed is not None else None


@roles
@reads
@given(steps, st.lists(steps.filter(bool).map(lambda s: s[0]).filter(lambda s: s[0] != "message"), max_size=3), places)
@settings(max_examples=60)
def test_any_conversation_cut_anywhere(
    server: bool, whole: bool, conversation: list[Step], between: list[Step], where: list[int]
) -> None:
    """Messages, fragments with control frames between, and pings come out as from websockets' own end."""
    wire = serialized(conversation, between, server=server)
    protocol, reader = theirs(server=server), reader_of(server=server)
    ours = Messages(reader, whole=whole)
    messages = []
    for piece in cut(wire, where):
        protocol.receive_data(piece)
        messages += ours.feed(piece)
    assert (messages, reader.pings, None) == heard_by_theirs(protocol)
    assert reader.closing is None
    assert messages == [b"".join(parts) for kind, parts in conversation if kind == "message"]


@roles
@given(
    st.lists(
        st.tuples(
            st.sampled_from([CONT, BINARY, CLOSE, PING, PONG, 3, 11, 0x40, 0x22]),
            st.booleans(),
            st.binary(max_size=12) | st.sampled_from([b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"x" * 126]),
            st.booleans() | st.just(value=True),
        ),
        max_size=6,
    ),
    places,
)
@settings(max_examples=300)
def test_any_frames_are_judged_alike(
    server: bool, frames: list[tuple[int, bool, bytes, bool]], where: list[int]
) -> None:
    """For any frames, valid or not, both readers deliver the same messages and end with the same code."""
    wire = b""
    inside = False
    for first, fin, payload, right_mask in frames:
        if first == CLOSE and inside:
            continue  # websockets refuses a close inside a message, which RFC 6455 does not
        wire += ws_frame(first | FIN * fin, payload, masked=server is right_mask)
        inside = not fin if first in {BINARY, CONT} else inside
    protocol, reader = theirs(server=server), reader_of(server=server)
    heard = Messages(reader)
    messages = []
    for piece in cut(wire, where):
        messages += heard.feed(piece)
    protocol.receive_data(wire)
    their_messages, their_pings, code = heard_by_theirs(protocol)
    assert messages == their_messages
    assert reader.pings == their_pings
    ours = reader.closing.code if reader.closing is not None else None
    if code == 1005:  # websockets' name for a close frame without a code
        code = 1000
    whole = protocol.reader.buffer == b""  # a wrong head is found before its payload is there
    both_wrong = {ours, code} == {1002, 1007}  # a close frame's code and its reason: either may be named
    assert ours == code or both_wrong or (not whole and code is None)


@roles
@reads
@given(st.binary(max_size=300), places)
@example(b"\x82\x7f" + b"\xff" * 8, [])
@example(b"\x82\xff" + b"\xff" * 8 + b"abcd", [3])
@settings(max_examples=200)
def test_arbitrary_bytes(server: bool, whole: bool, data: bytes, where: list[int]) -> None:
    """Arbitrary bytes raise nothing, and after the end nothing is delivered."""
    reader = reader_of(server=server, max_message=10_000)
    heard = Messages(reader, whole=whole)
    for piece in cut(data, where):
        ended = reader.closing
        messages = heard.feed(piece)
        assert ended is None or (messages == [] and reader.closing is ended)
        assert all(len(message) <= 10_000 for message in messages)


# Autobahn's test suite, as far as it applies to binary messages only: name, frames, expected outcome.
def close(code: int, reason: bytes = b"") -> tuple[int, bytes]:
    return FIN | CLOSE, struct.pack("!H", code) + reason


HELLO = b"Hello, world!"
AUTOBAHN: list[tuple[str, list[tuple[int, bytes]], list[bytes], list[bytes], int | None]] = [
    *[
        (f"1.2 a binary message of {size}", [(FIN | BINARY, b"\xfe" * size)], [b"\xfe" * size], [], None)
        for size in (0, 125, 126, 127, 128, 65535, 65536)
    ],
    ("1.1 text is not accepted", [(FIN | TEXT, b"")], [], [], 1003),
    ("2.1 a ping without payload", [(FIN | PING, b"")], [], [b""], None),
    ("2.2 a ping with payload", [(FIN | PING, HELLO)], [], [HELLO], None),
    ("2.3 a ping of binary", [(FIN | PING, bytes((0, 0xFF, 0xFE)))], [], [bytes((0, 0xFF, 0xFE))], None),
    ("2.4 a ping of 125 bytes", [(FIN | PING, b"\xfe" * 125)], [], [b"\xfe" * 125], None),
    ("2.5 a ping of 126 bytes", [(FIN | PING, b"\xfe" * 126)], [], [], 1002),
    ("2.7 a pong unasked", [(FIN | PONG, b"")], [], [], None),
    ("2.8 a pong unasked with payload", [(FIN | PONG, HELLO)], [], [], None),
    ("2.9 a pong, then a ping", [(FIN | PONG, HELLO), (FIN | PING, b"x")], [], [b"x"], None),
    ("2.10 ten pings", [(FIN | PING, b"%d" % n) for n in range(10)], [], [b"%d" % n for n in range(10)], None),
    ("3.1 RSV3", [(FIN | 0x10 | BINARY, b"x")], [], [], 1002),
    ("3.2 RSV2 behind a message", [(FIN | BINARY, b"a"), (FIN | 0x20 | BINARY, b"x")], [b"a"], [], 1002),
    ("3.3 RSV2 and 3", [(FIN | BINARY, b"a"), (FIN | 0x30 | BINARY, b"x")], [b"a"], [], 1002),
    ("3.4 RSV1", [(FIN | BINARY, b"a"), (FIN | 0x40 | BINARY, b"x"), (FIN | PING, b"")], [b"a"], [], 1002),
    ("3.5 RSV1 and 3", [(FIN | 0x50 | BINARY, b"x")], [], [], 1002),
    ("3.6 RSV1 and 2 on a ping", [(FIN | 0x60 | PING, b"x")], [], [], 1002),
    ("3.7 all RSV on a close", [(FIN | 0x70 | CLOSE, b"")], [], [], 1002),
    *[(f"4.1 opcode {n}", [(FIN | BINARY, b"a"), (FIN | n, b"")], [b"a"], [], 1002) for n in range(3, 8)],
    *[(f"4.2 opcode {n}", [(FIN | BINARY, b"a"), (FIN | n, b"x")], [b"a"], [], 1002) for n in range(11, 16)],
    ("5.1 a ping in two", [(PING, b"a"), (FIN | CONT, b"b")], [], [], 1002),
    ("5.2 a pong in two", [(PONG, b"a"), (FIN | CONT, b"b")], [], [], 1002),
    ("5.3 a message in two", [(BINARY, b"a"), (FIN | CONT, b"b")], [b"ab"], [], None),
    ("5.6 a ping inside", [(BINARY, b"a"), (FIN | PING, b"p"), (FIN | CONT, b"b")], [b"ab"], [b"p"], None),
    ("5.9 a continuation of nothing", [(FIN | CONT, b"x"), (FIN | BINARY, b"a")], [], [], 1002),
    ("5.12 one without FIN", [(CONT, b"x"), (FIN | BINARY, b"a")], [], [], 1002),
    (
        "5.15 a continuation behind the end",
        [(BINARY, b"a"), (FIN | CONT, b"b"), (CONT, b"c"), (FIN | BINARY, b"d")],
        [b"ab"],
        [],
        1002,
    ),
    ("5.18 a message inside another", [(BINARY, b"a"), (FIN | BINARY, b"b")], [], [], 1002),
    ("5.18 text inside another", [(BINARY, b"a"), (FIN | TEXT, b"b")], [], [], 1002),
    (
        "5.19 five fragments, two pings",
        [
            (BINARY, b"1"),
            (CONT, b"2"),
            (FIN | PING, b"p"),
            (CONT, b"3"),
            (CONT, b"4"),
            (FIN | PING, b"q"),
            (FIN | CONT, b"5"),
        ],
        [b"12345"],
        [b"p", b"q"],
        None,
    ),
    ("6.1 fragments of nothing", [(BINARY, b""), (CONT, b""), (FIN | CONT, b"")], [b""], [], None),
    ("6.1 nothing around something", [(BINARY, b""), (CONT, b"x"), (FIN | CONT, b"")], [b"x"], [], None),
    ("7.1 a close", [(FIN | BINARY, b"a"), close(1000)], [b"a"], [], 1000),
    ("7.1 two closes", [close(1000), close(1001)], [], [], 1000),
    ("7.1 a ping behind the close", [close(1000), (FIN | PING, b"p")], [], [], 1000),
    ("7.1 a message behind the close", [close(1000), (FIN | BINARY, b"a")], [], [], 1000),
    ("7.1 a close inside a message", [(BINARY, b"a"), close(1000), (FIN | CONT, b"b")], [], [], 1000),
    ("7.3 a close of nothing", [(FIN | CLOSE, b"")], [], [], 1000),
    ("7.3 a close of one byte", [(FIN | CLOSE, b"a")], [], [], 1002),
    ("7.3 a reason", [close(1000, HELLO)], [], [], 1000),
    ("7.3 the longest reason", [close(1000, b"r" * 123)], [], [], 1000),
    ("7.3 a longer reason", [close(1000, b"r" * 124)], [], [], 1002),
    ("7.5 a reason that is not UTF-8", [close(1000, b"\xce\xba\xed\xa0\x80")], [], [], 1007),
    *[
        (f"7.7 code {n}", [close(n)], [], [], n)
        for n in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
    ],
    *[
        (f"7.9 code {n}", [close(n)], [], [], 1002)
        for n in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    ],
]


@roles
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["byte by byte", "at once"])
@pytest.mark.parametrize(
    ("frames", "messages", "pings", "code"), [case[1:] for case in AUTOBAHN], ids=[case[0] for case in AUTOBAHN]
)
def test_autobahn(
    server: bool,
    step: int,
    frames: list[tuple[int, bytes]],
    messages: list[bytes],
    pings: list[bytes],
    code: int | None,
) -> None:
    """The cases of Autobahn's groups 1 to 7 that apply to binary messages have the outcome that it requires."""
    if step == 1 and sum(len(payload) for _, payload in frames) > 1000:
        step = 997
    wire = b"".join(ws_frame(first, payload, masked=server) for first, payload in frames)
    reader = reader_of(server=server)
    ours = Messages(reader)
    heard = []
    for start in range(0, len(wire), step):
        heard += ours.feed(wire[start : start + step])
    assert heard == messages
    assert reader.pings == pings
    assert (reader.closing and reader.closing.code) == code


@roles
@pytest.mark.parametrize("opcode", [BINARY, PING, PONG, CLOSE])
def test_masking(server: bool, opcode: int) -> None:
    """A client's frame must be masked, a server's must not."""
    reader = reader_of(server=server)
    assert reader.receive_data(ws_frame(FIN | opcode, b"", masked=not server)) == []
    assert reader.closing is not None
    assert (reader.closing.code, reader.closing.by_peer) == (1002, False)
    assert "mask" in reader.closing.reason


@roles
def test_the_peers_reason(server: bool) -> None:
    """A close frame's code and reason are reported, and that they came from the peer."""
    reader = reader_of(server=server)
    reader.receive_data(ws_frame(FIN | CLOSE, close_payload(4000, "grüße"), masked=server))
    assert reader.closing == Closing(4000, "grüße", by_peer=True)


@roles
@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        ([1000], True),
        ([1001], False),
        ([600, 400], True),
        ([600, 401], False),
        ([1000, 0, 0], True),
        ([0, 0, 1001], False),
        ([1] * 1000, True),
        ([1] * 1001, False),
        ([1 << 63], False),
    ],
)
def test_the_largest_message(server: bool, sizes: list[int], fits: bool) -> None:
    """A message beyond the limit ends the session with 1009, also over fragments, before its bytes have arrived."""
    reader = reader_of(server=server, max_message=1000)
    ours = Messages(reader)
    heard = []
    for place, size in enumerate(sizes):
        first = (CONT if place else BINARY) | (FIN if place == len(sizes) - 1 else 0)
        real = b"x" * size if size <= 1000 else b""
        heard += ours.feed(ws_frame(first, real, masked=server, length=size))
        heard += ours.feed(ws_frame(FIN | PING, b"p" * 125, masked=server))  # the ping does not count
    assert [len(m) for m in heard] == ([1000] if fits else [])
    assert (reader.closing and reader.closing.code) == (None if fits else 1009)


@roles
@reads
@pytest.mark.parametrize(
    ("first", "right_mask"),
    [(FIN | 0x40 | BINARY, True), (FIN | BINARY, False), (FIN | TEXT, True)],
    ids=["reserved bit", "wrong mask", "text"],
)
def test_messages_before_a_violation(server: bool, whole: bool, first: int, right_mask: bool) -> None:
    """Whole messages before a violation in the same chunk are delivered, and nothing after it."""
    bad = ws_frame(first, masked=server is right_mask)
    good = ws_frame(FIN | BINARY, b"good", masked=server)
    reader = reader_of(server=server)
    ours = Messages(reader, whole=whole)
    assert ours.feed(good * 3 + bad + good) == [b"good"] * 3
    assert reader.closing is not None
    ended = reader.closing
    assert ours.feed(good * 3) == ours.feed(good) == []
    assert reader.closing is ended
    assert reader.pings == []


@roles
def test_many_tiny_fragments(server: bool) -> None:
    """A message in 100,000 fragments of one byte takes time in proportion, not to the square."""
    one = ws_frame(CONT, b"x", masked=server)
    wire = ws_frame(BINARY, b"x", masked=server) + one * 99_998 + ws_frame(FIN, b"x", masked=server)
    reader = reader_of(server=server)
    began = time.process_time()
    pieces: list[Piece] = []
    for start in range(0, len(wire), 65536):
        pieces += reader.receive_data(wire[start : start + 65536])
    assert [bytes(piece) for piece, _ in pieces] == [b"x"] * 100_000
    assert [place for place, (_, ends) in enumerate(pieces) if ends] == [99_999]
    assert time.process_time() - began < 5


@given(payloads, st.sampled_from([Opcode.BINARY, Opcode.CLOSE, Opcode.PING]), st.booleans())
@settings(max_examples=100)
def test_what_we_write_they_read(payload: bytes, opcode: Opcode, client: bool) -> None:
    """websockets' own end reads our heads, and masked payloads joined from parts."""
    if opcode is not Opcode.BINARY:
        payload = b"\x03\xe8" + payload[:100].hex().encode()[:123]
    protocol = theirs(server=client)
    mask = KEY if client else None
    middle = len(payload) // 3
    body = b"".join(mask_parts([payload[:middle], memoryview(payload)[middle:]], KEY)) if client else payload
    protocol.receive_data(frame_head(opcode, len(payload), mask) + body)
    (event,) = protocol.events_received()
    assert event == Frame(opcode, payload)


@given(st.sampled_from([1000, 1009, 4999]), st.text(max_size=200))
@example(1000, "€" * 60)
@settings(max_examples=50)
def test_close_payload(code: int, reason: str) -> None:
    """A close frame's payload fits a control frame, and its reason is cut between characters."""
    payload = close_payload(code, reason)
    assert len(payload) <= 125
    parsed = Close.parse(payload)
    assert parsed.code == code
    assert reason.startswith(parsed.reason)
    assert len(reason.encode()) - len(parsed.reason.encode()) <= max(0, len(reason.encode()) - 120)
