"""Helpers of the core's tests: messages cut at any place, and WebSocket frames made by hand."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence

from websockets.speedups import apply_mask

from kdispatch_protocol.wire.frames import DATA, Frame
from kdispatch_protocol.wire.websocket import WebSocketReader

KEY = b"\x01\x02\x03\x04"


def ws_frame(first: int, payload: bytes = b"", *, masked: bool, length: int | None = None) -> bytes:
    """A WebSocket frame with any first byte; ``length`` is the length in its head, right or wrong."""
    size = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, mask | size))
    elif size < 65536:
        head = bytes((first, mask | 126)) + struct.pack("!H", size)
    else:
        head = bytes((first, mask | 127)) + struct.pack("!Q", size)
    return head + KEY + apply_mask(payload, KEY) if masked else head + payload


def is_alone(received: list[Frame]) -> bool:
    """Whether the message is a single DATA, which may take a fast path."""
    return len(received) == 1 and received[0][0] == DATA


def cut(data: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """``data`` in pieces, cut at the given places."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    for start, stop in itertools.pairwise(edges):
        yield data[start:stop]


class Messages:
    """Joins a reader's pieces again, in separate buffers. ``whole``: by the fast path if possible."""

    def __init__(self, reader: WebSocketReader, *, whole: bool = True) -> None:
        self.reader = reader
        self._whole = whole
        self._under_way = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Give ``data`` to the reader in a buffer that is overwritten afterwards; returns the messages that ended."""
        memory = bytearray(data)
        view = memoryview(memory)
        whole = self.reader.receive_data_fast(view, len(view)) if self._whole else None
        messages = []
        for piece, ends in [(whole, True)] if whole is not None else self.reader.receive_data(view):
            self._under_way += piece
            if ends:
                messages.append(self._under_way)
                self._under_way = b""
        memory[:] = bytes(len(memory))
        return messages
