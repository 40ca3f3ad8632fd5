"""Writing to a transport's socket: vectored, and at once where nothing waits before.

A transport's own ``write`` takes one buffer, so several would have to be joined,
and uvloop's waits for the end of the loop's turn. Here the socket gets all parts
in one system call; only what it does not take is copied, and left to the
transport, which knows how to wait.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from kdispatch_protocol.wire.frames import Buffer

__all__ = ["SocketWriter"]

# More parts than this are small ones, and joined: the kernel takes 1,024 at most, and each costs.
_PARTS: Final = 16
# So is all that is as small as this: a copy of 2 KiB costs less than another part.
_JOINED: Final = 2048


class SocketWriter:
    """The one way to write to ``transport``, so that nothing overtakes what waits in it."""

    __slots__ = ("_fd", "_transport", "_waits", "error")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.error = 0  # the number of the first error that was not for want of room: the kernel says it only once
        sock = transport.get_extra_info("socket")
        plain = sock is not None and transport.get_extra_info("ssl_object") is None and hasattr(os, "writev")
        self._fd = sock.fileno() if plain else -1
        self._waits = True  # something may wait in the transport, from before or of what was written here

    def write_one(self, data: Buffer) -> None:
        """The fast path of :meth:`write`: what is small and in one piece, to a socket that has room."""
        if not self._waits and not self._transport.is_closing():
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:  # the transport meets the same one, or what is left of it
                self.error = self.error or error.errno or 0
                sent = 0
            if sent != len(data):
                self._waits = True
                self._transport.write(bytes(data[sent:]))
        else:
            self.write([data], len(data))

    def write(self, parts: list[Buffer], size: int) -> None:
        """Send the parts, ``size`` bytes together, in order. They may be reused afterwards."""
        transport = self._transport
        if transport.is_closing():
            return
        if self._fd >= 0 and not (self._waits and transport.get_write_buffer_size()):
            if size <= _JOINED or len(parts) > _PARTS:
                parts = [b"".join(parts)]
            try:
                sent = os.writev(self._fd, parts)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._fd = -1  # the transport meets the same error, and ends for it
                self.error = self.error or error.errno or 0
                sent = 0
            self._waits = sent != size
            if not self._waits:
                return
            parts = _rest(parts, sent)
        # Joined even if it is one: a transport may keep what it is given, and the caller reuses its memory.
        transport.write(b"".join(parts))


def _rest(parts: list[Buffer], sent: int) -> list[Buffer]:
    """What is left of ``parts`` behind so many bytes."""
    for place, part in enumerate(parts):
        size = len(part)
        if sent < size:
            return [memoryview(part)[sent:], *parts[place + 1 :]]
        sent -= size
    return []
