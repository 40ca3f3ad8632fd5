"""Vectored writes to a transport's socket, immediate if nothing is pending.

A transport's own ``write`` takes one buffer, so several would have to be joined,
and uvloop's write waits for the end of the loop's turn. Here the socket gets all
parts in one system call. Only what it does not take is copied and passed to the
transport, which waits for room.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from kdispatch_protocol.wire.frames import Buffer

__all__ = ["SocketWriter"]

# More parts than this are small and get joined: the kernel takes at most 1,024, and each costs.
_PARTS: Final = 16


class SocketWriter:
    """The only way to write to ``transport``, so that nothing overtakes its pending bytes."""

    __slots__ = ("_fd", "_transport", "_waits", "error")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.error = 0  # errno of the first error other than lack of room: the kernel reports it only once
        sock = transport.get_extra_info("socket")
        plain = sock is not None and transport.get_extra_info("ssl_object") is None and hasattr(os, "writev")
        self._fd = sock.fileno() if plain else -1
        self._waits = True  # the transport may have pending bytes

    def write_fast(self, data: Buffer) -> None:
        """Fast path of :meth:`write`, for one small buffer and a socket with room; it calls ``write`` in other cases.

        Same as ``write``: tests/aio/test_either_way.py::test_a_socket_gets_the_same_either_way
        """
        if not self._waits and not self._transport.is_closing():
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:  # the transport gets the same error, or a later one
                self.error = self.error or error.errno or 0
                sent = 0
            if sent != len(data):
                self._waits = True
                self._transport.write(bytes(data[sent:]))
        else:
            self.write([data], len(data))

    def write(self, parts: list[Buffer], size: int) -> None:
        """Send the parts, ``size`` bytes in total, in order. They may be reused afterwards."""
        transport = self._transport
        if transport.is_closing():
            return
        if self._fd >= 0 and not (self._waits and transport.get_write_buffer_size()):
            if len(parts) > _PARTS:
                parts = [b"".join(parts)]
            try:
                sent = os.writev(self._fd, parts)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._fd = -1  # the transport gets the same error, and ends
                self.error = self.error or error.errno or 0
                sent = 0
            self._waits = sent != size
            if not self._waits:
                return
            parts = _rest(parts, sent)
        # Join even a single part: a transport may keep what it gets, and the caller reuses its memory.
        transport.write(b"".join(parts))


def _rest(parts: list[Buffer], sent: int) -> list[Buffer]:
    """The parts without their first ``sent`` bytes."""
    for place, part in enumerate(parts):
        size = len(part)
        if sent < size:
            return [memoryview(part)[sent:], *parts[place + 1 :]]
        sent -= size
    return []
