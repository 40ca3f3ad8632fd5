from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.wire import frames

NUMBERS = {number: name for number, name in frames.TYPE_NAMES.items() if number <= frames.GOAWAY}
U64 = (1 << 64) - 1

# The rules a second time, as in docs/protocol.md and the architecture: name -> least, most, flags, number.
RULES: dict[str, tuple[int, int, int, bool | None]] = {
    "HELLO": (2, 16384, 0, False),
    "WELCOME": (2, 16384, 0, False),
    "OFFER": (2, 16384, 0, True),
    "OFFERED": (2, 16384, 0, True),
    "WITHDRAW": (0, 0, 0, True),
    "OPEN": (2, 16384, 0, True),
    "TRYING": (2, 16384, 0, True),
    "OPENED": (2, 16384, 0, True),
    "EARLY": (1, 16384, 0, True),
    "DATA": (1, 131072, 3, True),
    "ACK": (8, 8, 1, True),
    "FIN": (0, 0, 0, True),
    "ATTACH": (2, 32768, 0, False),
    "GONE": (0, 0, 0, True),
    "RESET": (2, 16384, 0, None),
    "PING": (0, 0, 0, False),
    "PONG": (0, 0, 0, False),
    "GOAWAY": (2, 16384, 0, False),
}
ANY_VALUE = {"EARLY", "PING", "PONG"}
TYPES = {name: number for number, name in frames.TYPE_NAMES.items()}


def made(name: str, length: int | None = None, stream: int | None = None, value: int = 0, flags: int = 0) -> bytes:
    """A frame of this type, valid except for the given values."""
    least, _, _, numbered = RULES[name]
    number = (7 if numbered else 0) if stream is None else stream
    return frames.frame(TYPES[name], number, value, b"x" * (least if length is None else length), flags)


def refused(message: bytes) -> bool:
    """Whether the decoder refuses it, with the one error that it may raise and whose code ends the session."""
    try:
        frames.decode(message)
    except RemoteProtocolError as error:
        return error.code == "protocol_error"
    return False


@st.composite
def valid_frames(draw: st.DrawFn) -> tuple[int, int, int, int, bytes]:
    name = draw(st.sampled_from(sorted(RULES)))
    least, most, flags, numbered = RULES[name]
    size = draw(st.integers(least, min(most, 40)) | st.sampled_from([least, most]))
    stream = 0 if numbered is False else draw(st.integers(1 if numbered else 0, 0xFFFFFFFF))
    value = draw(st.integers(0, U64 if name in ANY_VALUE else frames.MAX_OFFSET))
    bits = draw(st.integers(0, 7)) & flags
    return TYPES[name], bits, stream, value, draw(st.binary(min_size=1, max_size=1)) * size


def wire(parts: list[tuple[int, int, int, int, bytes]]) -> bytes:
    return b"".join(frames.frame(t, stream, value, payload, flags) for t, flags, stream, value, payload in parts)


def test_the_names_are_the_eighteen_types() -> None:
    """Every type has its name and its number, 1 to 18, and there are no others."""
    assert sorted(frames.TYPE_NAMES) == list(range(1, 19))
    assert set(frames.TYPE_NAMES.values()) == set(RULES)


@given(st.lists(valid_frames(), min_size=1, max_size=6))
@settings(max_examples=200)
def test_what_was_framed_is_decoded(parts: list[tuple[int, int, int, int, bytes]]) -> None:
    """A message of any valid frames is decoded to exactly these frames, in order."""
    decoded = frames.decode(wire(parts))
    assert [(*rest, bytes(payload)) for *rest, payload in decoded] == parts


@given(st.lists(valid_frames(), min_size=1, max_size=4))
@settings(max_examples=50)
def test_header_and_payload_apart_are_the_frame(parts: list[tuple[int, int, int, int, bytes]]) -> None:
    """A header sent before its payload gives the same bytes as the whole frame."""
    for type_, flags, stream, value, payload in parts:
        apart = frames.header(type_, flags, stream, value, len(payload)) + payload
        assert apart == frames.frame(type_, stream, value, payload, flags)


@given(st.binary(max_size=200))
@example(b"")
@settings(max_examples=500)
def test_any_bytes_give_frames_or_one_error(message: bytes) -> None:
    """The decoder is total: frames, or one RemoteProtocolError."""
    if not refused(message):
        assert wire([(t, f, s, v, bytes(p)) for t, f, s, v, p in frames.decode(message)]) == message


@given(st.lists(valid_frames(), min_size=1, max_size=3), st.data())
@settings(max_examples=400)
def test_mutated_messages_give_frames_or_one_error(
    parts: list[tuple[int, int, int, int, bytes]], data: st.DataObject
) -> None:
    """A valid message with bytes changed, cut, doubled or inserted still gives frames or one error."""
    message = bytearray(wire(parts)[:4096])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(message), 64)))
        match data.draw(st.sampled_from(["set", "cut", "insert", "drop"])):
            case "set" if place < len(message):
                message[place] = data.draw(st.integers(0, 255))
            case "cut":
                del message[place:]
            case "insert":
                message[place:place] = data.draw(st.binary(max_size=20))
            case _:
                del message[place : place + data.draw(st.integers(1, 20))]
    if not refused(bytes(message)):
        assert wire([(t, f, s, v, bytes(p)) for t, f, s, v, p in frames.decode(message)]) == message


@pytest.mark.parametrize("name", RULES)
def test_lengths(name: str) -> None:
    """Each type has a minimum and a maximum length; one byte beyond either ends the session."""
    least, most, _, _ = RULES[name]
    assert not refused(made(name, least))
    assert not refused(made(name, most))
    assert refused(made(name, most + 1))
    assert least == 0 or refused(made(name, least - 1))


@pytest.mark.parametrize("name", RULES)
def test_flags(name: str) -> None:
    """Each type accepts only its own flags."""
    for bits in range(8):
        allowed = bits & ~RULES[name][2] == 0
        assert refused(made(name, flags=bits)) is not allowed
        if allowed:
            assert frames.decode(made(name, flags=bits))[0][:2] == (TYPES[name], bits)


@pytest.mark.parametrize("name", RULES)
def test_stream_numbers(name: str) -> None:
    """Frames of a stream need its number, frames of the session have none, and RESET may do either."""
    numbered = RULES[name][3]
    assert refused(made(name, stream=0)) is (numbered is True)
    assert refused(made(name, stream=1)) is (numbered is False)
    assert refused(made(name, stream=0xFFFFFFFF)) is (numbered is False)


@pytest.mark.parametrize("name", RULES)
def test_values(name: str) -> None:
    """Offsets end at MAX_OFFSET; the values of PING, PONG and EARLY are arbitrary."""
    assert not refused(made(name, value=frames.MAX_OFFSET))
    assert refused(made(name, value=frames.MAX_OFFSET + 1)) is (name not in ANY_VALUE)
    assert refused(made(name, value=U64)) is (name not in ANY_VALUE)


@pytest.mark.parametrize("kind", [*range(8), *range(19 << 3, 256)])
def test_unknown_types(kind: int) -> None:
    """An unknown type ends the session, whatever its flags."""
    assert refused(bytes((kind,)) + bytes(15))


def test_an_empty_message() -> None:
    """A message holds at least one frame."""
    assert refused(b"")


@pytest.mark.parametrize("size", range(1, 20))
def test_a_frame_cut_short(size: int) -> None:
    """A message that ends inside a frame ends the session, also after whole frames."""
    whole = made("DATA", 4)
    assert refused(whole[:size])
    assert refused(whole + whole[:size])


def test_payloads_are_views() -> None:
    """Payloads are views into the message: nothing is copied."""
    message = bytearray(made("DATA", 4))
    ((*_, payload),) = frames.decode(message)
    message[-1] = ord("y")
    assert bytes(payload) == b"xxxy"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_messages_of_every_buffer_type(kind: type[bytes]) -> None:
    """A message may be bytes, a bytearray or a view."""
    assert len(frames.decode(kind(made("PING") + made("PONG")))) == 2


@given(st.integers(1, 0xFFFFFFFF), st.integers(0, frames.MAX_OFFSET), st.integers(0, frames.MAX_OFFSET), st.booleans())
@settings(max_examples=50)
def test_ack(stream: int, received: int, limit: int, fin: bool) -> None:
    """An ACK carries received, limit and whether the end arrived."""
    ((type_, flags, number, value, payload),) = frames.decode(frames.ack_frame(stream, received, limit, fin=fin))
    assert (type_, flags, number, value) == (frames.ACK, frames.FIN_ARRIVED if fin else 0, stream, received)
    assert frames.ack_limit(payload) == limit


@pytest.mark.parametrize("limit", [frames.MAX_OFFSET + 1, U64])
def test_ack_limit_out_of_range(limit: int) -> None:
    """A limit beyond MAX_OFFSET is refused, so that no sum overflows."""
    with pytest.raises(RemoteProtocolError):
        frames.ack_limit(limit.to_bytes(8, "big"))


@given(st.integers(0, 0xFFFF), st.integers(0, (1 << 48) - 1))
@settings(max_examples=50)
def test_early_value(attempt: int, offset: int) -> None:
    """The value of an EARLY frame combines the attempt and the offset."""
    assert frames.split_early(frames.early_value(attempt, offset)) == (attempt, offset)
    assert frames.early_value(attempt, offset) <= U64
