"""The sending half of a stream: bytes stay here until the peer has acknowledged them.

The buffer is the window. It keeps references to the written chunks, not copies.
Only small chunks are joined, because a program that writes single bytes would
otherwise cost a hundred bytes of bookkeeping for each.
"""

from __future__ import annotations

from collections import deque

from kdispatch_protocol.errors import LocalProtocolError, RemoteProtocolError
from kdispatch_protocol.wire.frames import Buffer

__all__ = ["Outbound", "gather"]

# Chunks up to SMALL are joined into runs of up to RUN bytes: a copy of 1 KiB costs less than an object.
_SMALL = 1024
_RUN = 16 * 1024


def gather(queue: deque[Buffer], chunk: Buffer) -> None:
    """Append ``chunk`` to ``queue``. Large chunks are kept as they are; small ones are joined into runs."""
    if len(chunk) > _SMALL:
        queue.append(chunk)
    elif queue and isinstance(queue[-1], bytearray) and len(queue[-1]) <= _RUN:
        queue[-1] += chunk
    else:
        queue.append(bytearray(chunk))


class Outbound:
    """base <= sent <= limit, sent <= end: absolute offsets of the acknowledged, sent and written bytes."""

    __slots__ = (
        "_fin_reached",
        "_reached",
        "_replay",
        "_unsent",
        "base",
        "end",
        "eof",
        "fin_acked",
        "fin_sent",
        "limit",
        "sent",
    )

    def __init__(self) -> None:
        self.base = 0
        self.sent = 0
        self.end = 0
        self.limit = 0
        self.eof = False  # the program writes no more
        self.fin_sent = False
        self.fin_acked = False
        self._reached = 0  # the highest offset sent before a rewind, and whether the FIN was sent
        self._fin_reached = False
        self._unsent: deque[Buffer] | None = None  # None while it would be empty: an empty deque is 760 bytes
        self._replay: deque[Buffer] | None = None

    @property
    def size(self) -> int:
        """Bytes held: written but not acknowledged."""
        return self.end - self.base

    @property
    def unsent(self) -> int:
        """Bytes written but not sent."""
        return self.end - self.sent

    def write(self, data: Buffer) -> None:
        """Keep ``data`` for sending. ``bytes`` are kept by reference, other types are copied."""
        if self.eof:
            raise LocalProtocolError("The stream's end was already written.")
        if not isinstance(data, bytes):
            data = bytes(data)
        if not data:
            return
        self.end += len(data)
        if self._unsent is None:
            self._unsent = deque()
        unsent = self._unsent
        if unsent and len(data) <= _SMALL and not isinstance(unsent[-1], memoryview) and len(unsent[-1]) <= _RUN:
            tail = unsent[-1]
            if not isinstance(tail, bytearray):
                tail = unsent[-1] = bytearray(tail)
            tail += data
        else:
            unsent.append(data)

    def write_fast(self, data: bytes, end: int) -> None:
        """Fast path of :meth:`write` and :meth:`take`: ``data`` was sent up to offset ``end``; keep it for replay only.

        Call it only if nothing was unsent. Same as both:
        tests/core/test_fast_paths.py::test_what_was_passed_on_can_be_repeated
        """
        self.sent = self.end = end
        if self._replay is None:
            self._replay = deque()
        gather(self._replay, data)

    def take(self, most: int, parts: list[Buffer]) -> int:
        """Move up to ``most`` unsent bytes, within the limit, to ``parts``; returns how many.

        The parts stay valid until they were joined or written. The replay queue keeps
        the same references.
        """
        wanted = count = max(0, min(most, self.limit - self.sent, self.end - self.sent))
        if not count or self._unsent is None:
            return 0
        unsent = self._unsent
        while count:
            chunk = unsent.popleft()
            if isinstance(chunk, bytearray):
                chunk = bytes(chunk)  # a run may still grow; a part that was handed out must not
            if len(chunk) > count:
                view = memoryview(chunk)
                unsent.appendleft(view[count:])
                chunk = view[:count]
            parts.append(chunk)
            self._remember(chunk)
            count -= len(chunk)
        if not unsent:
            self._unsent = None
        self.sent += wanted
        return wanted

    def _remember(self, chunk: Buffer) -> None:
        if self._replay is None:
            self._replay = deque()
        gather(self._replay, chunk)

    def acknowledge(self, received: int, limit: int, *, fin: bool) -> int:
        """Process an ACK: the peer has bytes below ``received`` and accepts those below ``limit``; returns bytes freed.

        Older values change nothing. Raises ``RemoteProtocolError`` for impossible values.
        """
        freed = self._free(received, fin=fin)
        self.limit = max(self.limit, limit)
        return freed

    def attach(self, received: int, limit: int, *, fin: bool) -> int:
        """Process the peer's ATTACH: send again what it lacks; returns the bytes freed.

        Its ``limit`` replaces the old one, even if it is lower. Raises like :meth:`acknowledge`.
        """
        freed = self._free(received, fin=fin)
        self.limit = max(limit, self.base)
        self.rewind()
        return freed

    def _free(self, received: int, *, fin: bool) -> int:
        """Free acknowledged bytes. They may have been sent under an older number and be queued to be sent again."""
        if received > max(self.sent, self._reached):
            raise RemoteProtocolError(f"{received} bytes are acknowledged, {self.sent} were sent.", "offset_mismatch")
        if fin and (not (self.fin_sent or self._fin_reached) or received != self.end):
            raise RemoteProtocolError("An end that was not sent is acknowledged.", "offset_mismatch")
        if fin:
            self.fin_acked = self.fin_sent = True
        freed = max(0, received - self.base)
        if received > self.sent:  # the peer has it, so it need not be sent again
            self._unsent = _drop(self._unsent, received - self.sent)
            self._replay, self.sent = None, received
        elif freed:
            self._replay = _drop(self._replay, freed)
        self.base += freed
        return freed

    def rewind(self) -> None:
        """Queue all unacknowledged bytes to be sent again, and the FIN unless it was acknowledged."""
        if self._replay:
            again = deque[Buffer](bytes(chunk) if isinstance(chunk, bytearray) else chunk for chunk in self._replay)
            again.extend(self._unsent or ())
            self._unsent, self._replay = again, None
        self._reached = max(self._reached, self.sent)
        self._fin_reached = self._fin_reached or self.fin_sent
        self.sent = self.base
        self.fin_sent = self.fin_acked

    def restart(self) -> None:
        """Queue everything to be sent again, to a host that never saw any of it."""
        self.rewind()
        self._reached, self._fin_reached = self.sent, False

    def clear(self) -> int:
        """Drop all bytes of a stream that was reset; returns the bytes freed."""
        freed = self.size
        self._unsent = self._replay = None
        self.base = self.sent = self.end
        return freed


def _drop(queue: deque[Buffer] | None, count: int) -> deque[Buffer] | None:
    """Return the queue without its first ``count`` bytes."""
    while count and queue:
        chunk = queue[0]
        if len(chunk) > count:
            if isinstance(chunk, bytearray):
                del chunk[:count]
            else:
                queue[0] = memoryview(chunk)[count:]
            break
        queue.popleft()
        count -= len(chunk)
    return queue or None
