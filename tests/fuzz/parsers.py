"""Runs one fuzzer input through all parsers of foreign bytes: WebSocketReader and FrameReader, at both ends.

The first three bytes of an input choose the role, the sizes of the pieces, and
whether the rest is wire bytes or messages that are first put into WebSocket
frames (a fuzzer rarely finds masks and lengths by chance). For every input the
pieces must give the same result as the whole.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import FrameReader
from kdispatch_protocol.wire.websocket import WebSocketReader, close_payload, frame_head, mask_parts

__all__ = ["Outcome", "check", "seeds", "spoiled"]

_MASK: Final = b"\x1f\x2e\x3d\x4c"
_LARGEST: Final = 32 * 1024 + 16  # the largest frame that is reassembled
_STEPS: Final = (1, 3, 7, 16, 17, 64, 200, 1 << 20)
_MAX_MESSAGE: Final = 200
_ERROR: Final = "protocol_error"


@dataclass
class Outcome:
    """The result: frames, with consecutive DATA merged, and how the bytes ended."""

    said: list[tuple[int, int, int, int, bytes]] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    end: object = None


def check(data: bytes, counts: Counter[str]) -> None:
    """Parse one input in two ways; raises ``AssertionError`` if they differ or exceed a bound."""
    how, pace, wrapped = (data + b"\0\0\0")[:3]
    server = bool(how & 1)
    wire = data[3:]
    if how & 2:
        wire = _framed(wire, server=server, fragment=1 + wrapped)
    whole = _read([wire], server=server)
    pieces = _read(_cut(wire, _STEPS[pace % 8], _STEPS[pace // 8 % 8]), server=server)
    assert (pieces.end, pieces.pings) == (whole.end, whole.pings)
    if whole.end == _ERROR and whole.said:
        # Frames before an error in the same piece may be returned or not.
        *before, last = whole.said
        assert pieces.said[: len(before)] == before
        more = pieces.said[len(before)]
        assert more[:4] == last[:4] and more[4].startswith(last[4])
    else:
        assert pieces.said == whole.said or whole.end == _ERROR
    counts["inputs"] += 1
    counts["frames"] += len([one for one in whole.said if one[0] != frames.DATA])
    counts["bytes of data"] += sum(len(one[4]) for one in whole.said if one[0] == frames.DATA)
    counts[f"ended: {whole.end}"[:60]] += 1


def _framed(messages: bytes, *, server: bool, fragment: int) -> bytes:
    """Put messages, each with a two-byte length, into WebSocket frames with payloads of up to ``fragment`` bytes."""
    wire = b""
    while len(messages) > 2:
        (size,) = struct.unpack_from("!H", messages)
        message, messages = messages[2 : 2 + size % 512], messages[2 + size % 512 :]
        parts = [message[at : at + fragment] for at in range(0, len(message), fragment)] or [b""]
        for place, part in enumerate(parts):
            head = bytearray(frame_head(2, len(part), _MASK if server else None))
            head[0] = (0 if place else 2) | (0x80 if place == len(parts) - 1 else 0)
            wire += head + (b"".join(mask_parts([part], _MASK)) if server else part)
    return wire


def _cut(wire: bytes, *steps: int) -> Iterator[bytes]:
    at, turn = 0, 0
    while at < len(wire):
        yield wire[at : at + steps[turn % len(steps)]]
        at += steps[turn % len(steps)]
        turn += 1


def _read(reads: Iterator[bytes] | list[bytes], *, server: bool) -> Outcome:
    """Parse like a carrier and its link."""
    reader, decoder = WebSocketReader(server=server, max_message=_MAX_MESSAGE), FrameReader()
    out = Outcome()
    for read in reads:
        memory = bytearray(read)
        view = memoryview(memory)
        whole = reader.receive_data_fast(view, len(view))
        for piece, ends in [(whole, True)] if whole is not None else reader.receive_data(view):
            try:
                received = decoder.receive(piece, ends=ends)
            except RemoteProtocolError as error:
                out.end = out.end or error.code
                break
            _note(out, received)
        assert len(reader._head) < 14 and len(reader._control) <= 125 and len(decoder._held) <= _LARGEST
        if out.end is not None:
            break
        if reader.closing is not None:
            out.end = reader.closing.code
            break
        memory[:] = b"\xdb" * len(memory)
    out.pings = reader.pings if out.end is None else []
    return out


def _note(out: Outcome, received: list[frames.Frame]) -> None:
    for type_, flags, stream, value, payload in received:
        if type_ != frames.DATA:
            out.said.append((type_, flags, stream, value, bytes(payload)))
            continue
        assert len(payload) > 0
        if out.said:
            type_before, flags_before, stream_before, start, data = out.said[-1]
            same = (frames.DATA, flags & frames.MARKED, stream) == (type_before, flags_before, stream_before)
            if same and start + len(data) == value:
                out.said[-1] = (frames.DATA, flags, stream, start, data + payload)
                continue
        out.said.append((type_, flags, stream, value, bytes(payload)))


# --- inputs -----------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Valid inputs from which a fuzzer starts."""
    messages = [
        frames.frame(frames.PING) + frames.frame(frames.DATA, 7, 100, b"hello", frames.BLOCKED),
        frames.frame(frames.HELLO, payload=b"{}"),
        frames.ack_frame(3, 100, 5000, fin=True) + frames.frame(frames.FIN, 3, 9),
        frames.frame(frames.DATA, 9, 0, b"d" * 40, frames.MARKED),
        frames.frame(frames.EARLY, 5, 1 << 50, b"e") + frames.frame(frames.GONE, 5),
    ]
    packed = b"".join(struct.pack("!H", len(message)) + message for message in messages)
    made = [bytes((how, pace, fragment)) + packed for how in (2, 3) for pace in (0, 9, 63) for fragment in (0, 20, 255)]
    for server in (True, False):
        wire = _framed(packed, server=server, fragment=90)
        for opcode, payload in ((9, b"ping"), (10, b""), (8, close_payload(1000, "bye"))):
            head = frame_head(opcode, len(payload), _MASK if server else None)
            wire += head + (b"".join(mask_parts([payload], _MASK)) if server else payload)
            made.append(bytes((server, 17, 0)) + wire)
    return made


def _set(data: bytearray, at: int, chance: random.Random) -> None:
    data[at] = chance.choice((0, 1, 0x7E, 0x7F, 0x80, 0x82, 0xFE, 0xFF, chance.randrange(256)))


def _flip(data: bytearray, at: int, chance: random.Random) -> None:
    data[at] ^= 1 << chance.randrange(8)


def _drop(data: bytearray, at: int, chance: random.Random) -> None:
    del data[at : at + chance.choice((1, 2, 16, 100))]


def _insert(data: bytearray, at: int, chance: random.Random) -> None:
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16)))


def _double(data: bytearray, at: int, chance: random.Random) -> None:
    data[at:at] = data[at : at + chance.choice((1, 16, 40))]


_WAYS: Final[tuple[Callable[[bytearray, int, random.Random], None], ...]] = (_set, _set, _flip, _drop, _insert, _double)


def spoiled(data: bytes, chance: random.Random) -> bytes:
    """Return an input with some bytes changed, for runs without a better fuzzer."""
    made = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        if made:
            chance.choice(_WAYS)(made, chance.randrange(len(made)), chance)
    return bytes(made)
