"""The wire format: one header, eighteen frame types, and a decoder that handles any input.

A WebSocket message holds one or more whole frames. A frame is a header of 16
bytes, big-endian, and a payload::

    0       1               4                       8                              16
    +-------+---------------+-----------------------+------------------------------+
    | kind  | length (u24)  | stream (u32)          | value (u64)                  |
    +-------+---------------+-----------------------+------------------------------+
    | payload, `length` bytes                                                      |

``kind`` holds the type in its upper five bits and three flag bits. With 24 bits
of length a frame can carry a whole read of 64 or 128 KiB, which 16 bits could
not; the flags are short for that reason. ``docs/protocol.md`` describes the same
in words, and a test compares the two.
"""

from __future__ import annotations

import struct
from typing import Final

from kdispatch_protocol.errors import RemoteProtocolError

__all__ = [
    "HEADER",
    "MAX_OFFSET",
    "TYPE_NAMES",
    "Buffer",
    "Frame",
    "FrameReader",
    "ack_frame",
    "decode",
    "frame",
    "header",
]

Buffer = bytes | bytearray | memoryview

#: One decoded frame: type, flags, stream, value, payload. A plain tuple, because one is made for every frame.
Frame = tuple[int, int, int, int, memoryview]

HEADER: Final = struct.Struct("!IIQ")
_LIMIT: Final = struct.Struct("!Q")

#: Offsets stay below this, so that no sum of an offset and a length overflows u64.
MAX_OFFSET: Final = 1 << 62

# Type numbers, as on the wire.
HELLO: Final = 1
WELCOME: Final = 2
OFFER: Final = 3
OFFERED: Final = 4
WITHDRAW: Final = 5
OPEN: Final = 6
TRYING: Final = 7
OPENED: Final = 8
EARLY: Final = 9
DATA: Final = 10
ACK: Final = 11
FIN: Final = 12
ATTACH: Final = 13
GONE: Final = 14
RESET: Final = 15
PING: Final = 16
PONG: Final = 17
GOAWAY: Final = 18

# Flags.
BLOCKED: Final = 1  # DATA: these bytes used up the sender's limit
MARKED: Final = 2  # DATA: these bytes waited too long at the relay
FIN_ARRIVED: Final = 1  # ACK: the end of the stream arrived as well

TYPE_NAMES: Final = {
    number: name for name, number in globals().items() if name.isupper() and name.isalpha() and type(number) is int
    and name not in {"BLOCKED", "MARKED"}
}  # fmt: skip

_JSON_MAX: Final = 16 * 1024
_DATA_MAX: Final = 128 * 1024
# type -> (smallest and largest length, allowed flags, stream number: required True, forbidden False, either None)
_RULES: Final[dict[int, tuple[int, int, int, bool | None]]] = {
    HELLO: (2, _JSON_MAX, 0, False),
    WELCOME: (2, _JSON_MAX, 0, False),
    OFFER: (2, _JSON_MAX, 0, True),
    OFFERED: (2, _JSON_MAX, 0, True),
    WITHDRAW: (0, 0, 0, True),
    OPEN: (2, _JSON_MAX, 0, True),
    TRYING: (2, _JSON_MAX, 0, True),
    OPENED: (2, _JSON_MAX, 0, True),
    EARLY: (1, _JSON_MAX, 0, True),
    DATA: (1, _DATA_MAX, BLOCKED | MARKED, True),
    ACK: (8, 8, FIN_ARRIVED, True),
    FIN: (0, 0, 0, True),
    ATTACH: (2, 32 * 1024, 0, False),
    GONE: (0, 0, 0, True),
    RESET: (2, _JSON_MAX, 0, None),
    PING: (0, 0, 0, False),
    PONG: (0, 0, 0, False),
    GOAWAY: (2, _JSON_MAX, 0, False),
}
# Type, flags, smallest and largest length, stream number, largest value.
_Rule = tuple[int, int, int, int, bool | None, int]
# Indexed by the first byte: one look-up per frame checks type and flags.
_BY_KIND: Final[list[_Rule | None]] = [None] * 256
for _type, (_low, _high, _flags, _numbered) in _RULES.items():
    for _bits in range(8):
        if _bits & ~_flags == 0:
            _most = (1 << 64) - 1 if _type in {EARLY, PING, PONG} else MAX_OFFSET
            _BY_KIND[_type << 3 | _bits] = (_type, _bits, _low, _high, _numbered, _most)


def header(type_: int, flags: int, stream: int, value: int, length: int) -> bytes:
    """The 16 byte header for a payload of ``length`` bytes that is sent beside it without a copy."""
    return HEADER.pack((type_ << 3 | flags) << 24 | length, stream, value)


def frame(type_: int, stream: int = 0, value: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """A whole small frame."""
    return HEADER.pack((type_ << 3 | flags) << 24 | len(payload), stream, value) + payload


def ack_frame(stream: int, received: int, limit: int, *, fin: bool) -> bytes:
    """An ACK: all bytes below ``received`` arrived; the peer may send bytes below ``limit``."""
    return HEADER.pack((ACK << 3 | fin) << 24 | 8, stream, received) + _LIMIT.pack(limit)


def ack_limit(payload: Buffer) -> int:
    """The limit in an ACK's payload; raises ``RemoteProtocolError`` if it is out of range."""
    (limit,) = _LIMIT.unpack(payload)
    if limit > MAX_OFFSET:
        raise RemoteProtocolError("A limit is out of range.")
    return int(limit)


class FrameReader:
    """Turns pieces of messages into frames. Any bytes give either frames or one ``RemoteProtocolError``.

    A message is held until its last byte, so this holds at most one message. After an error the session must end.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()  # the beginning of a message

    @property
    def partial(self) -> int:
        """Bytes held of an incomplete message."""
        return len(self._held)

    def receive(self, piece: Buffer, *, ends: bool) -> list[Frame]:
        """Take the next piece of the current message. Payloads are views into ``piece`` where possible."""
        if not ends:
            self._held += piece
            return []
        if self._held:
            self._held += piece
            piece, self._held = self._held, bytearray()
        return decode(piece)


def decode(message: Buffer) -> list[Frame]:
    """Split one whole message into its frames."""
    view = memoryview(message)
    size = len(view)
    frames: list[Frame] = []
    unpack = HEADER.unpack_from
    position = 0
    while position < size:
        start = position + 16
        if start > size:
            raise RemoteProtocolError("A message ends within a frame.")
        word, stream, value = unpack(view, position)
        length = word & 0xFFFFFF
        rule = _BY_KIND[word >> 24]
        if rule is None:
            raise RemoteProtocolError(f"A frame's type or flags are unknown: {word >> 24:#04x}.")
        type_, flags, low, high, numbered, most = rule
        if not low <= length <= high or value > most or (numbered is not None and numbered is (stream == 0)):
            raise _broken(rule, length, stream)
        position = start + length
        if position > size:
            raise RemoteProtocolError("A message ends within a frame.")
        frames.append((type_, flags, stream, value, view[start:position]))
    if not frames:
        raise RemoteProtocolError("A message holds no frame.")
    return frames


def _broken(rule: _Rule, length: int, stream: int) -> RemoteProtocolError:
    """The error for a header that breaks its rule."""
    type_, _, low, high, numbered, _ = rule
    if not low <= length <= high:
        return RemoteProtocolError(f"A {TYPE_NAMES[type_]} frame's length is wrong: {length}.")
    if numbered is not None and numbered is (stream == 0):
        return RemoteProtocolError(f"A {TYPE_NAMES[type_]} frame's stream number is wrong: {stream}.")
    return RemoteProtocolError(f"A {TYPE_NAMES[type_]} frame's value is out of range.")


def early_value(attempt: int, offset: int) -> int:
    """The value of an EARLY frame: the attempt in the upper 16 bits, the offset in the lower 48."""
    return attempt << 48 | offset


def split_early(value: int) -> tuple[int, int]:
    """The attempt and the offset of an EARLY frame's value."""
    return value >> 48, value & 0xFFFFFFFFFFFF
