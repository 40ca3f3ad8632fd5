"""What the core's tests share: messages cut at any place, and WebSocket frames made by hand."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence

from websockets.speedups import apply_mask

from kdispatch_protocol.frames import Buffer
from kdispatch_protocol.websocket import WebSocketReader

KEY = b"\x01\x02\x03\x04"


def ws_frame(first: int, payload: bytes = b"", *, masked: bool, length: int | None = None) -> bytes:
    """A WebSocket frame of any first byte; ``length`` is what its head says, whatever is true."""
    size = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, mask | size))
    elif size < 65536:
        head = bytes((first, mask | 126)) + struct.pack("!H", size)
    else:
        head = bytes((first, mask | 127)) + struct.pack("!Q", size)
    return head + KEY + apply_mask(payload, KEY) if masked else head + payload


def cut(data: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """``data`` in pieces, cut at the given places."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    for start, stop in itertools.pairwise(edges):
        yield data[start:stop]


def feed(reader: WebSocketReader, data: bytes, *, own_reads: bool) -> list[Buffer]:
    """Give ``data`` to the reader, the payloads by its own buffer where it offers one and ``own_reads`` says so."""
    messages: list[Buffer] = []
    while data:
        room = reader.buffer() if own_reads else None
        if room is None:
            messages += reader.receive_data(data)
            break
        count = min(len(room), len(data))
        room[:count] = data[:count]
        messages += reader.buffer_filled(count)
        data = data[count:]
    return messages
