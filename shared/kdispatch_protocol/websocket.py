"""WebSocket framing (RFC 6455, section 5) for both ends, sans-I/O.

Only what kdispatch needs: binary messages, ping, pong and close. Text is
refused, extensions are never negotiated. The handshake is done elsewhere.

A large payload is received where it stays: while one is under way,
:meth:`WebSocketReader.buffer` gives the very memory its remaining bytes belong
in, and the caller reads the socket straight into it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from websockets.speedups import apply_mask

from kdispatch_protocol.frames import Buffer

__all__ = ["BINARY", "CLOSE", "PING", "PONG", "Closing", "WebSocketReader", "close_payload", "frame_head", "mask_parts"]

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_KNOWN: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_U16: Final = struct.Struct("!H")
_U64: Final = struct.Struct("!Q")
# Below this, a remaining payload is not worth a read of its own.
_OWN_READ: Final = 4096
# Codes that may stand in a close frame (RFC 6455, 7.4, and the IANA registry).
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


@dataclass(frozen=True, slots=True)
class Closing:
    """Why reading ended: ``code`` and ``reason`` are what the answering close frame should carry."""

    code: int
    reason: str
    by_peer: bool  # a close frame arrived, rather than a violation


def frame_head(opcode: int, length: int, mask: bytes | None) -> bytes:
    """The head of one unfragmented frame; ``mask`` is the four key bytes of a client's, ``None`` at a server."""
    masked = 0 if mask is None else 0x80
    if length < 126:
        head = bytes((0x80 | opcode, masked | length))
    elif length < 65536:
        head = bytes((0x80 | opcode, masked | 126)) + _U16.pack(length)
    else:
        head = bytes((0x80 | opcode, masked | 127)) + _U64.pack(length)
    return head if mask is None else head + mask


def mask_parts(parts: list[Buffer], mask: bytes) -> bytes:
    """Join and mask a client's payload: the mask runs through, so it is one pass over one buffer."""
    return apply_mask(b"".join(parts), mask)


def close_payload(code: int, reason: str) -> bytes:
    """A close frame's payload: the code and at most 123 bytes of UTF-8."""
    return _U16.pack(code) + reason.encode()[:123].decode(errors="ignore").encode()


class WebSocketReader:
    """Bytes in, messages and control frames out.

    Feed it with :meth:`receive_data`, or read into :meth:`buffer` and call
    :meth:`buffer_filled`; both return the messages completed. Then look at
    ``pings`` (payloads to answer, take and clear them) and ``closing``: once it
    is set, send its close frame and read no more.
    """

    __slots__ = (
        "_filled",
        "_head",
        "_mask",
        "_message",
        "_opcode",
        "_target",
        "closing",
        "max_message",
        "pings",
        "server",
    )

    def __init__(self, *, server: bool, max_message: int) -> None:
        self.server = server  # at a server frames must be masked, at a client they must not
        self.max_message = max_message
        self.closing: Closing | None = None
        self.pings: list[bytes] = []
        self._head = b""  # the beginning of a frame whose head is incomplete
        self._message: bytearray | None = None  # earlier fragments of the message under way
        self._opcode = 0  # with its FIN bit: the frame whose payload is under way
        self._mask = b""
        self._target: bytearray | None = None  # its payload, as it was on the wire
        self._filled = 0

    def buffer(self) -> memoryview | None:
        """Where the next bytes belong, when a large payload is under way; else ``None``."""
        target = self._target
        if target is None or len(target) - self._filled < _OWN_READ:
            return None
        return memoryview(target)[self._filled :]

    def buffer_filled(self, count: int) -> list[Buffer]:
        """``count`` bytes were written to what :meth:`buffer` gave."""
        messages: list[Buffer] = []
        self._advance(count, messages)
        return messages

    def receive_data(self, data: Buffer) -> list[Buffer]:
        """Take bytes from the wire. They are copied as needed; ``data`` may be reused afterwards."""
        messages: list[Buffer] = []
        view = memoryview(data)
        if self._head:
            view = memoryview(self._head + bytes(view))
            self._head = b""
        while view and self.closing is None:
            if self._target is not None:
                count = min(len(view), len(self._target) - self._filled)
                self._target[self._filled : self._filled + count] = view[:count]
                self._advance(count, messages)
                view = view[count:]
                continue
            used = self._take_frame(view, messages)
            if used == 0:
                self._head = bytes(view)
                break
            view = view[used:]
        return messages

    def _advance(self, count: int, messages: list[Buffer]) -> None:
        self._filled += count
        target = self._target
        if target is not None and self._filled == len(target):
            self._target = None
            self._complete(self._opcode, apply_mask(target, self._mask) if self.server else target, messages)

    def _take_frame(self, view: memoryview, messages: list[Buffer]) -> int:
        """Take one head, and its payload as far as it is there; returns the bytes used, 0 for an incomplete head."""
        size = len(view)
        if size < 2:
            return 0
        opcode, second = view[0], view[1]
        length = second & 0x7F
        position = 2
        if length == 126:
            position = 4
        elif length == 127:
            position = 10
        start = position + 4 if self.server else position
        if size >= 2 and not self._head_allowed(opcode, second):
            return size
        if size < start:
            return 0
        if length == 126:
            (length,) = _U16.unpack_from(view, 2)
        elif length == 127:
            (length,) = _U64.unpack_from(view, 2)
        if length + (0 if self._message is None else len(self._message)) > self.max_message and not opcode & 0x8:
            self._fail(1009, f"a message of more than {self.max_message} bytes")
            return size
        mask = bytes(view[position:start])
        end = start + length
        if end <= size:
            payload = view[start:end]
            self._complete(opcode, apply_mask(payload, mask) if self.server else bytes(payload), messages)
            return end
        self._opcode, self._mask = opcode, mask
        self._target = bytearray(length)
        self._target[: size - start] = view[start:]
        self._filled = size - start
        return size

    def _head_allowed(self, first: int, second: int) -> bool:
        """Check a frame's first two bytes; a violation is recorded in ``closing``."""
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
        elif opcode == CONTINUATION and self._message is None:
            problem = "a continuation of nothing"
        elif opcode in {TEXT, BINARY} and self._message is not None:
            problem = "a new message inside another"
        elif opcode == TEXT:
            self._fail(1003, "text messages are not accepted")
            return False
        if problem:
            self._fail(1002, problem)
        return not problem

    def _complete(self, first: int, payload: Buffer, messages: list[Buffer]) -> None:
        opcode = first & 0x0F
        if opcode == PING:
            self.pings.append(bytes(payload))
        elif opcode == CLOSE:
            self._closed(bytes(payload))
        elif opcode == PONG:
            pass  # an answer we did not ask for is allowed (RFC 6455, 5.5.3)
        elif opcode == BINARY and first & 0x80:
            messages.append(payload)
        elif self._message is None:
            self._message = bytearray(payload)
        else:
            self._message += payload
            if first & 0x80:
                messages.append(self._message)
                self._message = None

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
