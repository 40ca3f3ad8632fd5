"""What a WebSocket's reader returns for a read: pieces, or one piece by the fast path."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.wire.websocket import BINARY, CLOSE, PING, WebSocketReader
from tests.core.wire import Messages, ws_frame

FIN = 0x80
CONT, TEXT = 0x0, 0x1
roles = pytest.mark.parametrize("server", [True, False], ids=["at the server", "at the client"])


@roles
@pytest.mark.parametrize("kept", [1, 3, 7])
def test_the_callers_buffer_may_be_reused(server: bool, kept: int) -> None:
    """What is kept between reads stays right if the caller overwrites the buffer that it read into."""
    wire = ws_frame(FIN | PING, b"ping", masked=server) + ws_frame(FIN | BINARY, b"in two", masked=server)
    reader = WebSocketReader(server=server, max_message=1 << 20)
    ours = Messages(reader)  # it overwrites what it has given to the reader
    heard = []
    for start in range(0, len(wire), kept):
        heard += ours.feed(wire[start : start + kept])
    assert heard == [b"in two"]
    assert reader.pings == [b"ping"]


@st.composite
def short_reads(draw: st.DrawFn) -> tuple[bool, list[bytes]]:
    """A role, and reads that are mostly frames for it, complete or not."""
    server = draw(st.booleans())
    firsts = st.sampled_from([FIN | BINARY] * 4 + [BINARY, CONT, FIN | CONT, FIN | PING, FIN | CLOSE, FIN | TEXT, 0xC2])
    sizes = st.sampled_from([0, 1, 2, 60, 124, 125, 126, 127, 300, 1016, 1017, 1020, 1022, 1030])
    frames = st.tuples(firsts, sizes, st.sampled_from([server] * 9 + [not server])).map(
        lambda f: ws_frame(f[0], b"y" * f[1], masked=f[2])
    )
    cuts = st.sampled_from([None] * 5 + [1, 2, 5, -1])
    reads = draw(st.lists(st.tuples(frames, cuts), min_size=1, max_size=6))
    return server, [part for data, at in reads for part in ((data,) if at is None else (data[:at], data[at:])) if part]


@given(short_reads() | st.tuples(st.booleans(), st.lists(st.binary(min_size=1, max_size=140), max_size=4)))
@settings(max_examples=400)
def test_the_fast_path_says_what_the_other_does(case: tuple[bool, list[bytes]]) -> None:
    """receive_data_fast returns the one piece that receive_data would, or returns nothing and changes nothing."""
    server, given_reads = case
    fast, plain = (
        WebSocketReader(server=server, max_message=1 << 20),
        WebSocketReader(server=server, max_message=1 << 20),
    )
    for data in given_reads:
        whole = fast.receive_data_fast(memoryview(data + b"behind the read"), len(data))
        pieces = [(whole, True)] if whole is not None else fast.receive_data(data)
        assert [(bytes(p), ends) for p, ends in pieces] == [(bytes(p), ends) for p, ends in plain.receive_data(data)]
        assert (fast.closing, fast.pings) == (plain.closing, plain.pings)


@roles
def test_pieces_do_not_wait(server: bool) -> None:
    """Every byte of a payload is returned with the read that brought it; at a client it is not even copied."""
    payload = bytes(range(256)) * 200
    wire = ws_frame(FIN | BINARY, payload, masked=server)
    head = len(wire) - len(payload)
    reader = WebSocketReader(server=server, max_message=1 << 20)
    heard = b""
    for start, stop in ((0, head), (head, head + 1), (head + 1, head + 4098), (head + 4098, len(wire))):
        read = wire[start:stop]
        pieces = reader.receive_data(read)
        assert len(pieces) == (stop > head)
        for piece, ends in pieces:
            heard += piece
            assert ends is (stop == len(wire))
            assert server or (isinstance(piece, memoryview) and piece.obj is read)
    assert heard == payload
