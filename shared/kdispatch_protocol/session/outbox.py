"""The send queue of one session: control frames first, then all streams in fair turns.

Both ends use it. An agent's sources are its streams, which cut DATA from their
replay buffers when their turn comes. A relay's sources are lanes of frames to be
forwarded. Turns are by deficit round robin: a source that exceeded its quantum,
because frames are whole, waits longer for its next turn. A slow session has
small batches, and small quanta as well.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire.frames import Buffer

__all__ = ["Acknowledger", "Outbox", "Source", "Tally"]

# A queued control frame costs a relay this much beside its bytes.
_CONTROL: Final = 64


class Source(Protocol):
    """Something that has frames to send. The outbox owns ``deficit`` and ``queued``."""

    deficit: int
    queued: bool

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:
        """Append frames of about ``most`` bytes, at least one if any can go; returns their size."""
        ...

    def ready(self) -> bool:
        """Whether another pull would return frames."""
        ...


class Acknowledger(Protocol):
    """Something with an ACK to send. The ACK is made at the moment of writing, so it is up to date."""

    def make_ack(self) -> bytes:
        """The ACK frame; empty if there is nothing left to acknowledge."""
        ...


class Total(Protocol):
    """A sum over several accounts."""

    held: int


class Tally(Protocol):
    """What an outbox counts its queued control frames in: their bytes, and what each costs beside those."""

    held: int

    @property
    def budget(self) -> Total:
        """Where the same is counted."""
        ...


class Outbox:
    """A session's queue. It never awaits or writes: :meth:`collect` returns the next batch.

    Something is queued if ``control``, ``acks`` or ``ring`` is not empty. The fast paths check the three directly.
    """

    __slots__ = ("_quantum", "_quantum_least", "_soon", "acks", "control", "control_size", "ring", "slow", "tally")

    def __init__(self, limits: Limits, tally: Tally | None = None) -> None:
        """Control frames are counted in ``tally`` while they wait. Set it to ``None`` to count no longer."""
        self.tally = tally
        self._quantum = limits.quantum
        self._quantum_least = limits.batch_min // 4
        self.control: deque[bytes] = deque()
        self.control_size = 0  #: bytes of queued control frames
        self.slow = False  #: batches are small, so sources should cut frames to the requested size
        self.acks: dict[Acknowledger, None] = {}  # at most one ACK per stream, in order of request
        self._soon: dict[Acknowledger, None] = {}  # ACKs that go with other frames
        self.ring: deque[Source] = deque()

    def __bool__(self) -> bool:
        return bool(self.control or self.acks or self.ring)

    def send(self, frame: bytes) -> None:
        """Queue one whole control frame. Control frames keep their order and go before all data."""
        self.control.append(frame)
        size = len(frame)
        self.control_size += size
        tally = self.tally
        if tally is not None:  # not by a method of it: an open takes six of these changes
            size += _CONTROL
            tally.held += size
            tally.budget.held += size

    def acknowledge(self, stream: Acknowledger) -> None:
        """Queue an ACK of this stream."""
        self.acks[stream] = None

    def acknowledge_soon(self, stream: Acknowledger) -> None:
        """Send an ACK of this stream with the next batch; it does not cause one."""
        self._soon[stream] = None

    def hurry(self) -> None:
        """Queue the ACKs that waited for other frames: their time is over."""
        self.acks.update(self._soon)
        self._soon.clear()

    def activate(self, source: Source) -> None:
        """Queue this source for a turn. Repeated calls change nothing."""
        if not source.queued:
            source.queued = True
            self.ring.append(source)

    def discard(self, source: Source) -> None:
        """Remove this source and any ACK for it."""
        for acks in (self.acks, self._soon):
            acks.pop(source, None)  # type: ignore[call-overload]  # an agent's source is its own acknowledger
        if source.queued:
            self.ring.remove(source)
            self.forget(source)

    @staticmethod
    def forget(source: Source) -> None:
        """Reset what an outbox stores in a source: the source is in no outbox, and has no debt."""
        source.queued, source.deficit = False, 0

    def collect(self, most: int, now: float) -> list[Buffer]:
        """The next batch of whole frames, about ``most`` bytes; empty if nothing is queued."""
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
        if not ring:
            return parts
        # A small batch takes 20 ms, so a round of large turns would take seconds.
        quantum = min(self._quantum, max(most // 4, self._quantum_least))
        self.slow = quantum < self._quantum
        while ring and size < most:
            source = ring[0]
            alone = len(ring) == 1
            if alone:  # no other source waits: fill the batch, and leave no debt
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
            # Otherwise the batch is full in the middle of its turn, which continues in the next batch.
        return parts

    def _collect_control(self, parts: list[Buffer], most: int) -> int:
        size = 0
        control = self.control
        while control and size < most:
            frame = control.popleft()
            parts.append(frame)
            size += len(frame)
        self.control_size -= size
        tally = self.tally
        if tally is not None:
            counted = size + _CONTROL * len(parts)
            tally.held -= counted
            tally.budget.held -= counted
        return size
