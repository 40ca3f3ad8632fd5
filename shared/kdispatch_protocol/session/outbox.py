"""What one session will send next: control first, then every stream in fair turns.

Both ends use it. An agent's sources are its streams, which cut DATA from their
replay buffers when their turn comes; a relay's are lanes of frames that wait to
be forwarded. Turns are by deficit: a source that sent more than its quantum,
because frames are whole, waits the longer for its next turn. On a slow session,
whose batches are small, quanta are small as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire.frames import Buffer

__all__ = ["Acknowledger", "Outbox", "Source"]


class Source(Protocol):
    """Something that has frames to send. ``deficit`` and ``queued`` are the outbox's own."""

    deficit: int
    queued: bool

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:
        """Append frames of about ``most`` bytes, at least one if any can go; returns their size."""
        ...

    def ready(self) -> bool:
        """Whether another pull would give something."""
        ...


class Acknowledger(Protocol):
    """Something whose ACK is made when it is written, so that it says the newest."""

    def make_ack(self) -> bytes:
        """The ACK frame, or nothing if there is nothing to tell any more."""
        ...


class Outbox:
    """A session's queue. Nothing here awaits or writes: :meth:`collect` gives the next batch.

    Something waits where ``control``, ``acks`` or ``ring`` is not empty. The fast paths look at the three themselves.
    """

    __slots__ = ("_hold", "_quantum", "_quantum_least", "_soon", "acks", "control", "control_size", "ring", "slow")

    def __init__(self, limits: Limits, hold: Callable[[int, int], None] | None = None) -> None:
        """``hold`` hears of the bytes and the number of control frames that begin, or cease, to wait here."""
        self._hold = hold
        self._quantum = limits.quantum
        self._quantum_least = limits.batch_min // 4
        self.control: deque[bytes] = deque()
        self.control_size = 0  #: bytes of control frames that wait
        self.slow = False  #: batches are small, so that sources had better cut their frames to what they are asked for
        self.acks: dict[Acknowledger, None] = {}  # at most one ACK per stream, in order of first need
        self._soon: dict[Acknowledger, None] = {}  # ACKs that wait for company
        self.ring: deque[Source] = deque()

    def __bool__(self) -> bool:
        return bool(self.control or self.acks or self.ring)

    def send(self, frame: bytes) -> None:
        """Queue one whole control frame; they keep their order and go before all data."""
        self.control.append(frame)
        self.control_size += len(frame)
        if self._hold is not None:
            self._hold(len(frame), 1)

    def acknowledge(self, stream: Acknowledger) -> None:
        """An ACK of this stream is due."""
        self.acks[stream] = None

    def acknowledge_soon(self, stream: Acknowledger) -> None:
        """An ACK of this stream goes along with the next batch; there is no need to make one for it."""
        self._soon[stream] = None

    def hurry(self) -> None:
        """ACKs have waited long enough for company: they are due."""
        self.acks.update(self._soon)
        self._soon.clear()

    def activate(self, source: Source) -> None:
        """This source has something to send; it gets its turn. Asking again changes nothing."""
        if not source.queued:
            source.queued = True
            self.ring.append(source)

    def discard(self, source: Source) -> None:
        """Nothing of this source, nor an ACK for it, goes out here any more."""
        for acks in (self.acks, self._soon):
            acks.pop(source, None)  # type: ignore[call-overload]  # an agent's source is its own acknowledger
        if source.queued:
            self.ring.remove(source)
            self.forget(source)

    @staticmethod
    def forget(source: Source) -> None:
        """This source waits in no outbox any more, and owes nothing."""
        source.queued, source.deficit = False, 0

    def collect(self, most: int, now: float) -> list[Buffer]:
        """The next batch of whole frames, about ``most`` bytes; empty when there is nothing to send."""
        parts: list[Buffer] = []
        size = self._collect_control(parts, most) if self.control else 0
        if self._soon:
            self.hurry()
        acks = self.acks
        while acks and size < most:
            stream = next(iter(acks))
            del acks[stream]
            frame = stream.make_ack()
            if frame:
                parts.append(frame)
                size += len(frame)
        ring = self.ring
        # Where a small batch takes its 20 ms, a round of large turns would take seconds.
        quantum = min(self._quantum, max(most // 4, self._quantum_least))
        self.slow = quantum < self._quantum
        while ring and size < most:
            source = ring[0]
            alone = len(ring) == 1
            if alone:  # nobody waits for a turn: a frame may be as large as the batch has room, and leaves no debt
                source.deficit = most - size
            elif source.deficit <= 0:  # its turn begins
                source.deficit += quantum
            if source.deficit > 0:
                sent = source.pull(min(source.deficit, most - size), parts, now)
                size += sent
                source.deficit = 0 if alone else source.deficit - sent
            if not source.ready():
                ring.popleft()
                source.queued = False
                source.deficit = min(source.deficit, 0)
            elif source.deficit <= 0 or size < most:
                ring.rotate(-1)
            # else the batch is full in the middle of its turn: it goes on with it in the next one
        return parts

    def _collect_control(self, parts: list[Buffer], most: int) -> int:
        size = 0
        control = self.control
        while control and size < most:
            frame = control.popleft()
            parts.append(frame)
            size += len(frame)
        self.control_size -= size
        if self._hold is not None:
            self._hold(-size, -len(parts))
        return size
