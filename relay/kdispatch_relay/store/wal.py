"""Checks a write-ahead log. SQLite silently ignores a damaged one, and goes on without its content."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

__all__ = ["is_damaged"]

_HEADER: Final = 32  # bytes (https://sqlite.org/fileformat2.html#walformat): six words, and two of their checksum
_LITTLE: Final = 0x377F0682  # the checksum reads words as little-endian; with the next number, as big-endian
_BIG: Final = 0x377F0683
_WORD: Final = 0xFFFFFFFF


def is_damaged(log: Path) -> bool:
    """Whether the log's header is invalid, so that SQLite ignores the whole log. An empty or absent log is fine.

    Raises ``OSError`` if it cannot be read.
    """
    try:
        with log.open("rb") as file:
            header = file.read(_HEADER)
    except FileNotFoundError:
        return False
    if not header:
        return False
    if len(header) < _HEADER:
        return True
    magic = int.from_bytes(header[:4], "big")
    if magic not in (_LITTLE, _BIG):
        return True
    words = struct.unpack(f"{'<' if magic == _LITTLE else '>'}6I", header[:24])
    first = second = 0
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & _WORD
        second = (second + other + first) & _WORD
    return (first, second) != struct.unpack(">2I", header[24:])
