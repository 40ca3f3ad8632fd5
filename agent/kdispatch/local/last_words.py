"""Ends without loss: what a program sent before its connection broke, and what it must read before a reset.

A program may have its answer ready without needing the rest of the request. It sends the answer and closes. Its
kernel then resets the connection while the answer is still in our kernel: :class:`Remains` reads it. At the other end
the program must read the answer before the reset, because some kernels then drop unread bytes: :class:`Parting` waits
for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kdispatch.machine.operating_system import HERE
from kdispatch_protocol.endpoint.aio.transport import StreamTransport
from kdispatch_protocol.limits import Limits

if TYPE_CHECKING:
    from kdispatch.local.pipe import Pipe

__all__ = ["Parting", "Remains", "copy_of"]

#: Seconds between checks of a program that will be reset, and the time for which one on another machine may go on
#: sending. A program that uploads before it reads can send 20 MB in that time at 10 MB/s; all of it is dropped.
_LOOK_EVERY: Final = 0.1
_PATIENCE: Final = 2.0
#: Milliseconds after which a running program has read what its kernel has.
_OLD: Final = 1000
#: Bytes of one read.
_READ_SIZE: Final = 128 * 1024


def copy_of(transport: asyncio.Transport) -> socket.socket | None:
    """Duplicate the socket of a transport that is about to close it; ``None`` if that is not possible."""
    sock = transport.get_extra_info("socket")
    if sock is None or not HERE.keeps_unread:
        return None
    try:
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        copy.settimeout(0)
    except (OSError, ValueError):  # uvloop raises ValueError for a closed socket
        return None
    return copy


def _is_this_machine(sock: socket.socket) -> bool:
    """Whether the program at the other end of ``sock`` runs on the same kernel."""
    other = sock.getpeername()[0]
    return other == sock.getsockname()[0] or ipaddress.ip_address(other).is_loopback


class Remains:
    """Reads what the kernel still holds of a program whose connection broke, and writes it to the stream.

    ``broke`` is the errno with which the connection failed first, or 0 if no error was reported yet. ``over`` is called
    when everything is written.
    """

    __slots__ = ("_broke", "_over", "_room", "_sock", "_stream")

    def __init__(
        self,
        sock: socket.socket,
        stream: StreamTransport,
        broke: int,
        *,
        room: Callable[[], int],
        over: Callable[[], None],
    ) -> None:
        self._sock: socket.socket | None = sock
        self._stream = stream
        self._broke = broke
        self._room = room
        self._over = over

    def read(self) -> None:
        """Write what the stream takes now; call this again when it takes more."""
        while self._sock is not None and not self._stream.stream.writer_paused:
            try:
                data = self._sock.recv(min(self._room(), _READ_SIZE))
            except OSError:  # the reset itself, or a connection that is not established yet
                self._end(well=False)
            else:
                if data:
                    self._stream.add(data)
                else:
                    # After a failed write has reported the reset, a read returns an end.
                    self._end(well=not self._broke or (self._broke == errno.EPIPE and HERE.tells_end))

    def close(self) -> None:
        """Drop the rest."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            self._over()

    def _end(self, *, well: bool) -> None:
        if well:
            self._stream.add_eof()
        self.close()


class Parting:
    """Delays the reset of a program until it has got its data, and has had time to read it.

    Meanwhile its own bytes are read and dropped, because a program that is busy sending would not read otherwise.
    """

    def __init__(self, pipe: Pipe, transport: asyncio.Transport, limits: Limits) -> None:
        self._pipe = pipe
        self._transport = transport
        self._sock: socket.socket | None = transport.get_extra_info("socket")
        self._limits = limits
        self._loop = pipe.driver.loop
        self._handle: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._moved_at = self._drained_at = 0.0
        self._heard = False
        self._thrown_away = 0

    def begin(self) -> bool:
        """Start; returns whether there is anything to wait for."""
        self._unsent = self._waiting()
        if not self._unsent and not self._sent_lately():
            return False
        self._moved_at = self._loop.time()
        self._transport.resume_reading()
        self._later()
        return True

    def heard(self, count: int) -> None:
        """Count bytes that the program still sends. One that has sent more than ``Limits.dropped`` will not read."""
        self._heard = True
        self._thrown_away += count

    def cancel(self) -> None:
        """The connection is gone."""
        if self._handle is not None:
            self._handle.cancel()

    def _later(self) -> None:
        self._handle = self._loop.call_later(_LOOK_EVERY, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        unsent = self._waiting()
        if unsent < self._unsent:
            self._moved_at = now
        self._unsent = unsent
        if unsent:
            self._drained_at = 0.0
            over = now - self._moved_at >= self._limits.last_words
        else:
            self._drained_at = self._drained_at or now
            over = not (self._heard and self._sent_lately()) or now - self._drained_at >= _PATIENCE
        self._heard = False
        if over or self._thrown_away > self._limits.dropped:
            self._pipe.abort()
        else:
            self._later()

    def _waiting(self) -> int:
        """Bytes that the program's kernel does not have yet."""
        size = self._transport.get_write_buffer_size()
        if self._sock is not None:
            with contextlib.suppress(OSError, ValueError):
                size += HERE.unacknowledged(self._sock)
        return size

    def _sent_lately(self) -> bool:
        """Whether the program may not have read its last bytes yet."""
        stream = self._pipe.stream
        if stream is None or not stream.stream.inbound.received:
            return False
        if self._sock is None:
            return True
        try:
            since = HERE.since_sent(self._sock)
            # On one machine, unread bytes stay readable after a reset.
            return since is None or (since < _OLD and not _is_this_machine(self._sock))
        except (OSError, ValueError):
            return True
