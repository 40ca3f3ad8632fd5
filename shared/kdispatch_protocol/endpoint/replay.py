"""The sending half of a stream: bytes wait here until the peer has acknowledged them.

The buffer is the window. It keeps references to the chunks that were written,
not copies; only small ones are put together, so that a program that writes byte
by byte does not cost a hundred bytes of bookkeeping for each.
"""

from __future__ import annotations

from collections import deque

from kdispatch_protocol.errors import LocalProtocolError, RemoteProtocolError
from kdispatch_protocol.wire.frames import Buffer

__all__ = ["Outbound", "gather"]

# Chunks up to SMALL are gathered into runs of up to RUN bytes: a copy of 1 KiB costs less than an object.
_SMALL = 1024
_RUN = 16 * 1024


def gather(queue: deque[Buffer], chunk: Buffer) -> None:
    """Append ``chunk``: a large one as it is, a small one to the run of small ones at the end, or as a new run."""
    if len(chunk) > _SMALL:
        queue.append(chunk)
    elif queue and isinstance(queue[-1], bytearray) and len(queue[-1]) <= _RUN:
        queue[-1] += chunk
    else:
        queue.append(bytearray(chunk))


class Outbound:
    """base <= sent <= limit, sent <= end: acknowledged, sent and written so far, as absolute offsets."""

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
        self.eof = False  # no more will be written
        self.fin_sent = False
        self.fin_acked = False
        self._reached = 0  # how far it was sent before it went back, and whether the end was
        self._fin_reached = False
        self._unsent: deque[Buffer] | None = None  # while something is in it: an empty deque is 760 bytes
        self._replay: deque[Buffer] | None = None

    @property
    def size(self) -> int:
        """Bytes held: written and not acknowledged."""
        return self.end - self.base

    @property
    def unsent(self) -> int:
        """Bytes written and not sent."""
        return self.end - self.sent

    def write(self, data: Buffer) -> None:
        """Keep ``data`` for sending. ``bytes`` are kept as they are, anything else is copied."""
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

    def passed_on(self, data: bytes, end: int) -> None:
        """Written and sent in one, as limit and order allowed: ``data``, up to ``end``, is kept for replay only."""
        self.sent = self.end = end
        if self._replay is None:
            self._replay = deque()
        gather(self._replay, data)

    def take(self, most: int, parts: list[Buffer]) -> int:
        """Move up to ``most`` unsent bytes, within the limit, to ``parts``; returns how many.

        The parts stay valid until they were joined or written; they are kept for
        replay under the same references.
        """
        wanted = count = max(0, min(most, self.limit - self.sent, self.end - self.sent))
        if not count or self._unsent is None:
            return 0
        unsent = self._unsent
        while count:
            chunk = unsent.popleft()
            if isinstance(chunk, bytearray):
                chunk = bytes(chunk)  # runs may still grow elsewhere; what is handed out must not
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
        """The peer has all bytes below ``received`` and takes those below ``limit``; returns the bytes freed.

        An older number says nothing new. Raises ``RemoteProtocolError`` for one that can't be true.
        """
        freed = self._free(received, fin=fin)
        self.limit = max(self.limit, limit)
        return freed

    def attach(self, received: int, limit: int, *, fin: bool) -> int:
        """The peer goes on under a new number: send again what it lacks; returns the bytes freed.

        Its ``limit`` counts, be it lower than the one before. Raises like :meth:`acknowledge`.
        """
        freed = self._free(received, fin=fin)
        self.limit = max(limit, self.base)
        self.rewind()
        return freed

    def _free(self, received: int, *, fin: bool) -> int:
        """The peer has these: what was sent under an older number, and is about to be sent again, counts as well."""
        if received > max(self.sent, self._reached):
            raise RemoteProtocolError(f"{received} bytes are acknowledged, {self.sent} were sent.", "offset_mismatch")
        if fin and (not (self.fin_sent or self._fin_reached) or received != self.end):
            raise RemoteProtocolError("An end that was not sent is acknowledged.", "offset_mismatch")
        if fin:
            self.fin_acked = self.fin_sent = True
        freed = max(0, received - self.base)
        if received > self.sent:  # it need not be sent again
            self._unsent = _drop(self._unsent, received - self.sent)
            self._replay, self.sent = None, received
        elif freed:
            self._replay = _drop(self._replay, freed)
        self.base += freed
        return freed

    def rewind(self) -> None:
        """All that is not acknowledged is to be sent again, the end too unless it was."""
        if self._replay:
            again = deque[Buffer](bytes(chunk) if isinstance(chunk, bytearray) else chunk for chunk in self._replay)
            again.extend(self._unsent or ())
            self._unsent, self._replay = again, None
        self._reached = max(self._reached, self.sent)
        self._fin_reached = self._fin_reached or self.fin_sent
        self.sent = self.base
        self.fin_sent = self.fin_acked

    def restart(self) -> None:
        """Nothing of it has arrived anywhere: all is to be sent again, to somebody who never saw it."""
        self.rewind()
        self._reached, self._fin_reached = self.sent, False

    def clear(self) -> int:
        """Forget everything, for a stream that was reset; returns the bytes freed."""
        freed = self.size
        self._unsent = self._replay = None
        self.base = self.sent = self.end
        return freed


def _drop(queue: deque[Buffer] | None, count: int) -> deque[Buffer] | None:
    """The queue without its first ``count`` bytes."""
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
