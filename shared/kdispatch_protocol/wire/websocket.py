"""WebSocket framing (RFC 6455, section 5) for both ends, sans-I/O.

It has only what kdispatch needs: binary messages, ping, pong and close. Text
messages are refused, extensions are never negotiated. Other code does the
handshake.

Messages are not assembled: their payload is passed on in pieces as it arrives.
So nothing waits for the end of a message, and only an incomplete frame head and
an incomplete control frame are held here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from websockets.speedups import apply_mask

from kdispatch_protocol.wire.frames import Buffer

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PONG",
    "Closing",
    "Piece",
    "WebSocketReader",
    "close_payload",
    "frame_head",
    "mask_parts",
]

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_KNOWN: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_U16: Final = struct.Struct("!H")
_U64: Final = struct.Struct("!Q")
_HEAD_MAX: Final = 14
# First byte of a binary message in one frame.
_WHOLE: Final = 0x80 | BINARY
# The largest read that is copied to be looked at as a whole. An OPEN is 300 bytes.
_COPIED: Final = 1024
# Parts below this are joined before masking: a copy of 4 KiB costs less than another call.
_SMALL: Final = 4096
# Codes allowed in a close frame (RFC 6455, 7.4, and the IANA registry).
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


_SHORT_HEADS: Final = {code: [bytes((0x80 | code, n)) for n in range(256)] for code in (BINARY, CLOSE, PING, PONG)}

#: A piece of a message's payload, and whether it is the last one of the message.
Piece = tuple[Buffer, bool]


@dataclass(frozen=True, slots=True)
class Closing:
    """Why reading ended. The close frame that answers should carry ``code`` and ``reason``."""

    code: int
    reason: str
    by_peer: bool  # true after a close frame, false after a violation


def frame_head(opcode: int, length: int, mask: bytes | None) -> bytes:
    """The head of one unfragmented frame. ``mask`` is a client's four key bytes, or ``None`` at a server."""
    masked = 0 if mask is None else 0x80
    if length < 126:
        head = _SHORT_HEADS[opcode][masked | length]
    elif length < 65536:
        head = bytes((0x80 | opcode, masked | 126)) + _U16.pack(length)
    else:
        head = bytes((0x80 | opcode, masked | 127)) + _U64.pack(length)
    return head if mask is None else head + mask


def mask_parts(parts: list[Buffer], mask: bytes) -> list[Buffer]:
    """Mask a client's payload. Small parts are joined; a large part keeps its own buffer. The mask runs through all.

    Large parts are not copied together, because that would be one more pass over them.
    """
    masked: list[Buffer] = []
    small: list[Buffer] = []
    for part in parts:
        if len(part) < _SMALL:
            small.append(part)
            continue
        if small:
            joined = b"".join(small)
            small.clear()
            masked.append(apply_mask(joined, mask))
            mask = _turned(mask, len(joined))
        masked.append(apply_mask(part, mask))
        mask = _turned(mask, len(part))
    if small:
        masked.append(apply_mask(b"".join(small), mask))
    return masked


def _turned(mask: bytes, count: int) -> bytes:
    """The mask, rotated for the byte that follows ``count`` masked bytes."""
    turn = count & 3
    return mask[turn:] + mask[:turn] if turn else mask


def close_payload(code: int, reason: str) -> bytes:
    """A close frame's payload: the code and at most 123 bytes of UTF-8."""
    return _U16.pack(code) + reason.encode()[:123].decode(errors="ignore").encode()


class WebSocketReader:
    """Turns bytes into pieces of messages and control frames.

    Pass bytes to :meth:`receive_data`. Then check ``pings`` (payloads to answer: take
    and clear them) and ``closing``. Once ``closing`` is set, send its close frame and
    read no more.
    """

    __slots__ = (
        "_control",
        "_first",
        "_head",
        "_inside",
        "_left",
        "_mask",
        "_size",
        "closing",
        "idle",
        "max_message",
        "pings",
        "server",
    )

    def __init__(self, *, server: bool, max_message: int) -> None:
        self.server = server  # a server accepts only masked frames, a client only unmasked ones
        self.max_message = max_message
        self.closing: Closing | None = None
        self.pings: list[bytes] = []
        self.idle = 0  #: frames that brought no byte of a message; its reader resets it
        self._head = b""  # an incomplete frame head
        self._first = 0  # the first byte of the current frame
        self._left = 0  # bytes missing of its payload
        self._mask = b""  # rotated for the next of them
        self._control = b""  # the beginning of a control frame's payload
        self._inside = False  # within a message: its last frame has not begun
        self._size = 0  # of that message, including the current frame

    def receive_data_fast(self, data: memoryview, size: int) -> bytes | None:
        """Fast path of :meth:`receive_data`: return the payload if a read of ``size`` bytes is one short message.

        Otherwise returns ``None`` and changes nothing: call ``receive_data``. The payload is a copy. Most reads of a
        stream that is not bulk are such messages, and most reads that open one; this saves 4 us for each (of 25 a hop).
        Same as ``receive_data``: tests/core/test_websocket_pieces.py::test_the_fast_path_says_what_the_other_does
        """
        if size > _COPIED or self._left or self._head or self._inside or self.closing:
            return None
        server = self.server
        start = 6 if server else 2
        length = size - start
        if length <= 0:
            return None
        read = data[:size].tobytes()  # slicing bytes takes half the time of slicing views
        if length < 126:
            head = length
        else:  # two bytes more of head say the length
            start += 2
            length -= 2
            head = 126
            if length < 126 or read[2] << 8 | read[3] != length or length > self.max_message:
                return None
        if read[0] != _WHOLE or read[1] != (0x80 | head if server else head):
            return None
        return apply_mask(read[start:], read[start - 4 : start]) if server else read[start:]

    def receive_data(self, data: Buffer) -> list[Piece]:
        """Take bytes from the wire.

        A client's pieces are views into ``data``: use or copy them before it is reused.
        A server's pieces were unmasked and have their own memory.
        """
        pieces: list[Piece] = []
        view = memoryview(data)
        size = len(view)
        position = 0
        while position < size and self.closing is None:
            if not self._left:
                position = self._take_head(view, position, pieces)
                continue
            count = min(self._left, size - position)
            payload: Buffer = view[position : position + count]
            position += count
            self._left -= count
            if self.server:
                payload = apply_mask(payload, self._mask)
                if self._left:
                    self._mask = _turned(self._mask, count)
            if self._first & 0x8:
                self._control += payload
                if not self._left:
                    self._control_arrived()
            else:
                pieces.append((payload, not self._left and self._first & 0x80 != 0))
        return pieces

    def _take_head(self, view: memoryview, position: int, pieces: list[Piece]) -> int:
        """Take a frame's head, which may have begun in an earlier read; returns the position after it."""
        before = len(self._head)
        head = self._head + bytes(view[position : position + _HEAD_MAX - before])
        size = len(head)
        if size < 2:
            self._head = head
            return len(view)
        first, second = head[0], head[1]
        length = second & 0x7F
        start = 2 if length < 126 else 4 if length == 126 else 10
        if self.server:
            start += 4
        # Most frames are whole messages and need no further check.
        ordinary = first == _WHOLE and not self._inside and second >> 7 == self.server
        if not ordinary and not self._head_allowed(first, second):
            return len(view)
        if size < start:
            self._head = head
            return len(view)
        if length == 126:
            (length,) = _U16.unpack_from(head, 2)
        elif length == 127:
            (length,) = _U64.unpack_from(head, 2)
        self._head = b""
        self._first, self._left = first, length
        if self.server:
            self._mask = head[start - 4 : start]
        if not first & 0x8:
            self._size = length + (self._size if self._inside else 0)
            if self._size > self.max_message:
                self._fail(1009, f"a message of more than {self.max_message} bytes")
                return len(view)
            self._inside = not first & 0x80
        if not length:
            self._empty_frame(pieces)
        return position + start - before

    def _empty_frame(self, pieces: list[Piece]) -> None:
        if self._first & 0x8:
            self._control_arrived()
        elif self._first & 0x80:
            pieces.append((b"", True))
        else:
            self.idle += 1

    def _head_allowed(self, first: int, second: int) -> bool:
        """Check a frame's first two bytes; a violation is stored in ``closing``."""
        opcode = first & 0x0F
        problem = ""
        if first & 0x70:
            problem = "a reserved bit is set"
        elif opcode not in _KNOWN:
            problem = f"unknown opcode {opcode}"
        elif bool(second & 0x80) is not self.server:
            problem = "a client's frame without a mask" if self.server else "a server's frame with a mask"
        elif opcode & 0x8 and (not first & 0x80 or second & 0x7F > 125):
            problem = "a control frame in fragments or longer than 125 bytes"
        elif opcode == CONTINUATION and not self._inside:
            problem = "a continuation of nothing"
        elif opcode in {TEXT, BINARY} and self._inside:
            problem = "a new message inside another"
        elif opcode == TEXT:
            self._fail(1003, "text messages are not accepted")
            return False
        if problem:
            self._fail(1002, problem)
        return not problem

    def _control_arrived(self) -> None:
        payload, self._control = self._control, b""
        self.idle += 1
        opcode = self._first & 0x0F
        if opcode == PING:
            self.pings.append(payload)
        elif opcode == CLOSE:
            self._closed(payload)
        # An unsolicited pong is allowed (RFC 6455, 5.5.3).

    def _closed(self, payload: bytes) -> None:
        if not payload:
            self.closing = Closing(1000, "", by_peer=True)
            return
        if len(payload) == 1:
            self._fail(1002, "a close frame of one byte")
            return
        (code,) = _U16.unpack_from(payload)
        if code not in _CLOSE_CODES and not 3000 <= code < 5000:
            self._fail(1002, f"close code {code} must not be sent")
            return
        try:
            reason = payload[2:].decode()
        except UnicodeDecodeError:
            self._fail(1007, "a close reason that is not UTF-8")
            return
        self.closing = Closing(code, reason, by_peer=True)

    def _fail(self, code: int, reason: str) -> None:
        self.closing = Closing(code, reason, by_peer=False)
