"""Credit: what a receiver lets its peer send, in absolute offsets.

Invariants, asserted here: consumed <= received <= limit; a limit never goes
down; the sum of ``limit - received`` over a session's streams stays within its
budget, but for the floor that every stream may always have.
"""

from __future__ import annotations

from typing import Final

from kdispatch_protocol.endpoint.growth import Growth
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits

__all__ = ["CreditBudget", "Distances", "Inbound"]

# Peers whose distance is remembered; of more, all is forgotten and learned anew.
_PEERS: Final = 1024


class CreditBudget:
    """A session's budget: how many bytes its streams' peers may have under way to it."""

    __slots__ = ("limits", "promised", "total")

    def __init__(self, total: int, limits: Limits) -> None:
        self.total = total
        self.limits = limits
        self.promised = 0

    def first_window(self) -> int:
        """A new stream's window in bytes: smaller, the more of the budget is promised."""
        if self.promised < self.total // 2:
            return self.limits.window
        if self.promised < self.total * 3 // 4:
            return self.limits.window_tight
        return self.limits.window_floor

    def share(self, own: int) -> int:
        """What a stream may have under way that has ``own`` bytes so already: half of what the others leave.

        So N streams that want all they can get come to have an N + 1st part each, and whoever comes last finds one too.
        """
        return max(0, (self.total - self.promised + own) // 2)

    def within(self, streams: int) -> bool:
        """Whether the invariant holds for this many streams."""
        return 0 <= self.promised <= self.total + streams * self.limits.window_floor


class Inbound:
    """The receiving half of a stream: its offsets, and the credit it has granted."""

    __slots__ = (
        "_consumed_granted",
        "_told",
        "budget",
        "consumed",
        "final",
        "grows",
        "limit",
        "most",
        "received",
        "told_fin",
        "window",
    )

    def __init__(self, budget: CreditBudget) -> None:
        self.budget: Final = budget
        self.window = budget.first_window()
        self.received = 0  # all bytes below arrived
        self.consumed = 0  # all bytes below were taken by the program, or its socket
        self.limit = 0  # bytes below may be sent by the peer
        self.final: int | None = None  # the peer's final offset, once its FIN is here
        self.told_fin = False  # an ACK with the flag `fin` went out
        self._told = 0  # `received` of the last ACK
        self._consumed_granted = 0  # `consumed` when the limit was last raised
        self.grows: Growth | None = None  # made at the first flag
        self.most = min(budget.limits.window_near, budget.limits.window_max)  # what the window may grow to

    def grant(self) -> int:
        """The limit to put on the wire now: raised as far as window and budget allow.

        Call it only for a frame that is really sent.
        """
        budget = self.budget
        if self.final is None:
            share = budget.share(self.limit - self.received)
            if self.grows is not None:
                unread = self.received - self.consumed
                most = min(self.most, share)
                self.window = self.grows.window(self.window, self.received, unread, most, budget.limits)
            least = self.consumed + min(self.window, budget.limits.window_floor)
            limit = max(self.limit, least, min(self.consumed + self.window, self.received + share))
            budget.promised += limit - self.limit
            self.limit = limit
        self._consumed_granted = self.consumed
        self._told = self.received
        self.told_fin = self.finished
        return self.limit

    def accept(self, offset: int, length: int) -> int:
        """Take note of bytes that arrived; returns how many of the first are known already.

        Raises ``RemoteProtocolError`` with the stream's code; then the stream must be reset.
        """
        end = offset + length
        if end > self.limit:
            raise RemoteProtocolError(f"{end - self.limit} bytes are over the limit.", "credit_exceeded")
        if offset > self.received:
            raise RemoteProtocolError(f"Bytes from {offset} on came, {self.received} was expected.", "offset_mismatch")
        if self.final is not None and end > self.final:
            raise RemoteProtocolError(f"Bytes up to {end} came, behind the end at {self.final}.", "offset_mismatch")
        known = min(self.received - offset, length)
        self.received += length - known
        self.budget.promised -= length - known
        assert self.consumed <= self.received <= self.limit
        assert self.budget.promised >= 0
        return known

    def accept_next(self, offset: int, length: int) -> bool:
        """The fast path of :meth:`accept`: takes note of bytes that are simply the next, and returns whether they are.

        If not, nothing was done.
        """
        end = offset + length
        if offset != self.received or end > self.limit or self.final is not None:
            return False
        self.received = end
        self.budget.promised -= length
        return True

    def reaches(self, round_trip: float) -> None:
        """The two ends are at most so many seconds apart, there and back: no window need be larger than that fills.

        What is under way beyond it waits in kernels, where nobody marks it: an echo beside two downloads over loopback
        took 17 ms with windows of 16 MiB, and 3 ms with 512 KiB, which moved nine tenths as much.
        """
        limits = self.budget.limits
        self.most = min(limits.window_max, max(limits.window_near, int(round_trip * limits.window_rate)))

    def note(self, flags: int, length: int, now: float) -> None:
        """Take note of the flags with which so many new bytes arrived; the window follows at the next grant."""
        growth = self.grows
        if growth is None:
            if not flags:
                return
            growth = self.grows = Growth(self.received - length, now)
        growth.note(flags, length, now)

    def finish(self, final: int) -> None:
        """Take note of the peer's FIN; raises ``RemoteProtocolError`` when it can't be true."""
        if final != self.received or self.final not in {None, final}:
            raise RemoteProtocolError(
                f"The end is at {final}, and {self.received} bytes were received.", "offset_mismatch"
            )
        if self.final is None:
            self.final = final
            self.release()

    @property
    def finished(self) -> bool:
        """All of the peer's bytes are here, and its end."""
        return self.final is not None

    def consume(self, count: int) -> bool:
        """The program took ``count`` bytes; returns whether an ACK is due at once."""
        self.consumed += count
        assert self.consumed <= self.received, "more was consumed than arrived"
        taken = self.consumed - self._consumed_granted
        # Measured on what was granted, not on the window: a curtailed grant needs its next one sooner.
        granted = self.limit - self._consumed_granted
        return self.final is None and taken >= min(granted // 4, self.budget.limits.ack_bytes)

    @property
    def unacknowledged(self) -> bool:
        """Whether the peer has yet to be told something."""
        return (
            self.received != self._told
            or (self.finished and not self.told_fin)
            or (self.final is None and self.consumed != self._consumed_granted)
        )

    def release(self) -> None:
        """Nothing more will arrive: give what is promised back to the budget."""
        self.budget.promised -= self.limit - self.received
        self.limit = self.received
        assert self.budget.promised >= 0


class Distances:
    """How far peers are, at most: the least time that each took to answer, as long as neither end has moved."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def answered(self, inbound: Inbound, peer: str, took: float) -> None:
        """The peer of a stream answered after so many seconds; a busy moment of it makes it no farther."""
        if len(self._seconds) >= _PEERS:
            self._seconds.clear()
        self._seconds[peer] = least = min(took, self._seconds.get(peer, took))
        inbound.reaches(least)

    def forget(self, peer: str) -> None:
        """The peer may be somewhere else."""
        self._seconds.pop(peer, None)
