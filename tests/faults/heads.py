"""Finds WebSocket frame heads in the bytes of one direction, for a proxy that cuts inside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Head", "Heads"]

_HTTP_END: Final = b"\r\n\r\n"


@dataclass(frozen=True)
class Head:
    """One frame: the position of its head's first byte, and the sizes of head and payload."""

    start: int
    size: int
    payload: int


class Heads:
    """Parses all bytes of one direction; frames start after the HTTP head of the upgrade."""

    def __init__(self) -> None:
        self._seen = 0
        self._next: int | None = None  # position of the next head
        self._kept = b""  # start of an incomplete head

    def feed(self, piece: memoryview) -> list[Head]:
        """Return the heads that ``piece`` holds or completes."""
        base = self._seen - len(self._kept)
        data = memoryview(self._kept + bytes(piece)) if self._kept else piece
        self._seen += len(piece)
        self._kept = b""
        if self._next is None:
            end = bytes(data).find(_HTTP_END)
            if end < 0:
                self._kept = bytes(data)
                return []
            self._next = base + end + len(_HTTP_END)
        found = []
        while (begin := self._next - base) < len(data):
            sizes = _sizes(data[begin:])
            if sizes is None:
                self._kept = bytes(data[begin:])
                break
            found.append(Head(self._next, *sizes))
            self._next += sum(sizes)
        return found


def _sizes(data: memoryview) -> tuple[int, int] | None:
    """Sizes of the head at the front of ``data`` and of its payload (RFC 6455, 5.2); ``None`` if it is incomplete."""
    if len(data) < 2:
        return None
    length = data[1] & 0x7F
    extended = {126: 2, 127: 8}.get(length, 0)
    size = 2 + extended + (4 if data[1] & 0x80 else 0)
    if len(data) < size:
        return None
    return size, int.from_bytes(data[2 : 2 + extended], "big") if extended else length
