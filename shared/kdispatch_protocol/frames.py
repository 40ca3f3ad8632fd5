"""The wire: one header, eighteen frame types, and a decoder that is total.

A WebSocket message holds one or more whole frames. A frame is a header of 16
bytes, big-endian, and a payload::

    0       1               4                       8                              16
    +-------+---------------+-----------------------+------------------------------+
    | kind  | length (u24)  | stream (u32)          | value (u64)                  |
    +-------+---------------+-----------------------+------------------------------+
    | payload, `length` bytes                                                      |

``kind`` is the type in its upper five bits and three flag bits. A length of 24
bits lets a frame carry a whole read of 64 or 128 KiB, which 16 bits do not; the
flags pay for it. ``docs/protocol.md`` says the same in words, and a test
compares the two.
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

#: One decoded frame: type, flags, stream, value, payload. A plain tuple: it is made for every frame that passes.
Frame = tuple[int, int, int, int, memoryview]

HEADER: Final = struct.Struct("!IIQ")
_LIMIT: Final = struct.Struct("!Q")

#: Offsets stay below this, so that no sum of an offset and a length overflows u64.
MAX_OFFSET: Final = 1 << 62

# Types. The numbers are the wire's.
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
MARKED: Final = 2  # DATA: they waited too long at the relay
FIN_ARRIVED: Final = 1  # ACK: the end of the stream arrived as well

TYPE_NAMES: Final = {
    number: name for name, number in globals().items() if name.isupper() and name.isalpha() and type(number) is int
    and name not in {"BLOCKED", "MARKED"}
}  # fmt: skip

_JSON_MAX: Final = 16 * 1024
_DATA_MAX: Final = 128 * 1024
# type -> (least and greatest length, allowed flags, is the stream number needed: True, forbidden: False, either: None)
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
# By the whole first byte: one look-up a frame says whether type and flags are known.
_BY_KIND: Final[list[tuple[int, int, int, int, bool | None] | None]] = [None] * 256
for _type, (_low, _high, _flags, _numbered) in _RULES.items():
    for _bits in range(8):
        if _bits & ~_flags == 0:
            _BY_KIND[_type << 3 | _bits] = (_type, _bits, _low, _high, _numbered)


def header(type_: int, flags: int, stream: int, value: int, length: int) -> bytes:
    """The 16 bytes before a payload of ``length`` bytes that is sent beside them, not behind a copy."""
    return HEADER.pack((type_ << 3 | flags) << 24 | length, stream, value)


def frame(type_: int, stream: int = 0, value: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """A whole small frame."""
    return HEADER.pack((type_ << 3 | flags) << 24 | len(payload), stream, value) + payload


def ack_frame(stream: int, received: int, limit: int, *, fin: bool) -> bytes:
    """An ACK: all bytes below ``received`` arrived, bytes below ``limit`` may be sent."""
    return HEADER.pack((ACK << 3 | fin) << 24 | 8, stream, received) + _LIMIT.pack(limit)


def ack_limit(payload: Buffer) -> int:
    """The limit in an ACK's payload; raises when it is out of range."""
    (limit,) = _LIMIT.unpack(payload)
    if limit > MAX_OFFSET:
        raise RemoteProtocolError("A limit is out of range.")
    return int(limit)


class FrameReader:
    """Pieces of messages in, whole frames out. Total: any bytes give frames or one ``RemoteProtocolError``.

    A frame waits for its last byte, so at most 128 KiB wait here. After an error the session must end.
    """

    __slots__ = ("_begun", "_held", "_wanted")

    def __init__(self) -> None:
        self._begun = False  # bytes of the message under way were here
        self._held = bytearray()  # the beginning of a frame
        self._wanted = 0  # how large it has to become: a header, or a header and its payload

    @property
    def partial(self) -> int:
        """Bytes that are kept of a frame that is not whole."""
        return len(self._held)

    def receive(self, piece: Buffer, *, ends: bool) -> list[Frame]:
        """Take the next piece of the message under way. Payloads are views into ``piece`` where they can be."""
        view = memoryview(piece)
        size = len(view)
        if ends and size >= 16 and not self._held:
            word, stream, value = HEADER.unpack_from(view)
            if size == 16 + (word & 0xFFFFFF):  # the message is one frame, as most are
                self._begun = False
                type_, flags = _checked(word, stream, value)
                return [(type_, flags, stream, value, view[16:])]
        frames: list[Frame] = []
        position = self._complete(view, frames) if self._held else 0
        while position < size:
            position = self._take(view, position, size, frames)
        if not ends:
            self._begun = self._begun or size > 0
        elif self._held:
            raise RemoteProtocolError("A message ends within a frame.")
        elif not size and not self._begun:
            raise RemoteProtocolError("A message holds no frame.")
        else:
            self._begun = False
        return frames

    def _take(self, view: memoryview, position: int, size: int, frames: list[Frame]) -> int:
        """Take the frame that begins at ``position``, as far as it is here; returns where the next one begins."""
        start = position + 16
        if start > size:
            self._hold(view[position:], 16)
            return size
        word, stream, value = HEADER.unpack_from(view, position)
        type_, flags = _checked(word, stream, value)
        end: int = start + (word & 0xFFFFFF)
        if end > size:
            self._hold(view[position:], end - position)
            return size
        frames.append((type_, flags, stream, value, view[start:end]))
        return end

    def _hold(self, beginning: memoryview, wanted: int) -> None:
        self._held += beginning
        self._wanted = wanted

    def _complete(self, view: memoryview, frames: list[Frame]) -> int:
        """Go on with a frame that has begun; returns the bytes used."""
        held = self._held
        used = min(self._wanted - len(held), len(view))
        held += view[:used]
        if len(held) == self._wanted == 16:
            word, stream, value = HEADER.unpack(held)
            _checked(word, stream, value)
            length: int = word & 0xFFFFFF
            self._wanted += length
            rest = min(length, len(view) - used)
            held += view[used : used + rest]
            used += rest
        if len(held) == self._wanted:
            word, stream, value = HEADER.unpack_from(held)
            type_, flags = _checked(word, stream, value)
            frames.append((type_, flags, stream, value, memoryview(held)[16:]))
            self._held = bytearray()
        return used


def _checked(word: int, stream: int, value: int) -> tuple[int, int]:
    """The type and flags of a header; raises when it breaks a rule."""
    rule = _BY_KIND[word >> 24]
    if rule is None:
        raise RemoteProtocolError(f"A frame's type or flags are unknown: {word >> 24:#04x}.")
    type_, flags, low, high, numbered = rule
    if not low <= (length := word & 0xFFFFFF) <= high:
        raise RemoteProtocolError(f"A {TYPE_NAMES[type_]} frame's length is wrong: {length}.")
    if numbered is not None and numbered is (stream == 0):
        raise RemoteProtocolError(f"A {TYPE_NAMES[type_]} frame's stream number is wrong: {stream}.")
    if value > MAX_OFFSET and type_ not in {EARLY, PING, PONG}:
        raise RemoteProtocolError(f"A {TYPE_NAMES[type_]} frame's value is out of range.")
    return type_, flags


def decode(message: Buffer) -> list[Frame]:
    """Cut one whole message into its frames."""
    return FrameReader().receive(message, ends=True)


def early_value(attempt: int, offset: int) -> int:
    """The value of an EARLY frame: the attempt in the upper 16 bits, the offset in the lower 48."""
    return attempt << 48 | offset


def split_early(value: int) -> tuple[int, int]:
    """The attempt and the offset of an EARLY frame's value."""
    return value >> 48, value & 0xFFFFFFFFFFFF
