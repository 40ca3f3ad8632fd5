"""Credit: how much a receiver lets its peer send, as absolute offsets.

Invariants, asserted here: consumed <= received <= limit; a limit never goes
down; the sum of ``limit - received`` over a session's streams stays within its
budget, except for the floor that every stream may always have.
"""

from __future__ import annotations

from typing import Final

from kdispatch_protocol.endpoint.growth import Growth
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits

__all__ = ["CreditBudget", "Distances", "Inbound"]

# Number of peers whose distance is remembered. When the table is full, all are forgotten and learned again.
_PEERS: Final = 1024


class CreditBudget:
    """A session's credit budget: how many bytes all peers together may have in flight to this end."""

    __slots__ = ("limits", "promised", "total")

    def __init__(self, total: int, limits: Limits) -> None:
        self.total = total
        self.limits = limits
        self.promised = 0

    def first_window(self) -> int:
        """Window of a new stream in bytes: the more of the budget is promised, the smaller."""
        if self.promised < self.total // 2:
            return self.limits.window
        if self.promised < self.total * 3 // 4:
            return self.limits.window_tight
        return self.limits.window_floor

    def share(self, own: int) -> int:
        """Bytes in flight allowed for a stream that has ``own`` in flight: half of what the other streams leave.

        So N streams that want all they can get converge to a share of 1/(N + 1) each, and a new stream finds the same
        share.
        """
        return max(0, (self.total - self.promised + own) // 2)

    def within(self, streams: int) -> bool:
        """Whether the budget's invariant holds for this number of streams."""
        return 0 <= self.promised <= self.total + streams * self.limits.window_floor


class Inbound:
    """The receiving half of a stream: its offsets, and the credit that it has granted."""

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
        self.received = 0  # all bytes below this have arrived
        self.consumed = 0  # the program, or its socket, has taken all bytes below this
        self.limit = 0  # the peer may send bytes below this
        self.final: int | None = None  # the peer's final offset, once its FIN has arrived
        self.told_fin = False  # an ACK with the flag `fin` was sent
        self._told = 0  # `received` in the last ACK
        self._consumed_granted = 0  # `consumed` when the limit was last raised
        self.grows: Growth | None = None  # created at the first flag
        self.most = min(budget.limits.window_near, budget.limits.window_max)  # upper bound of the window

    def grant(self) -> int:
        """Raise the limit as far as window and budget allow, and return it.

        Call this only for a frame that is really sent.
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
        self.told_fin = self.final is not None
        return self.limit

    def accept(self, offset: int, length: int) -> int:
        """Record received bytes; returns how many of them, from the first on, had arrived before.

        Raises ``RemoteProtocolError`` with a stream code; the caller must then reset the stream.
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

    def accept_fast(self, offset: int, length: int) -> bool:
        """Fast path of :meth:`accept`: record bytes that are exactly the next ones, and return true.

        Otherwise returns false and changes nothing: call ``accept``. Same as that:
        tests/core/test_fast_paths.py::test_bytes_are_accepted_the_same_either_way
        """
        end = offset + length
        if offset != self.received or end > self.limit or self.final is not None:
            return False
        self.received = end
        self.budget.promised -= length
        return True

    def reaches(self, round_trip: float) -> None:
        """Set the upper bound of the window from a ``round_trip`` in seconds: a larger window would not be filled.

        Bytes in flight beyond that wait in kernels, where the relay can't mark them. With windows of 16 MiB an echo
        beside two downloads over loopback took 17 ms; with 512 KiB it took 3 ms, and the downloads moved nine tenths as
        much.
        """
        limits = self.budget.limits
        self.most = min(limits.window_max, max(limits.window_near, int(round_trip * limits.window_rate)))

    def note(self, flags: int, length: int, now: float) -> None:
        """Record the flags of ``length`` new bytes; the next grant adapts the window."""
        growth = self.grows
        if growth is None:
            if not flags:
                return
            growth = self.grows = Growth(self.received - length, now)
        growth.note(flags, length, now)

    def finish(self, final: int) -> None:
        """Record the peer's FIN; raises ``RemoteProtocolError`` if its offset is impossible."""
        if final != self.received or self.final not in {None, final}:
            raise RemoteProtocolError(
                f"The end is at {final}, and {self.received} bytes were received.", "offset_mismatch"
            )
        if self.final is None:
            self.final = final
            self.release()

    @property
    def finished(self) -> bool:
        """Whether all of the peer's bytes and its FIN have arrived."""
        return self.final is not None

    def consume(self, count: int) -> bool:
        """Record that the program took ``count`` bytes; returns whether an ACK is due at once."""
        self.consumed += count
        assert self.consumed <= self.received, "more was consumed than arrived"
        taken = self.consumed - self._consumed_granted
        # Measured on what was granted, not on the window: a reduced grant needs the next one sooner.
        granted = self.limit - self._consumed_granted
        return self.final is None and taken >= min(granted // 4, self.budget.limits.ack_bytes)

    @property
    def unacknowledged(self) -> bool:
        """Whether there is something that the peer has not been told yet."""
        return (
            self.received != self._told
            or (self.final is not None and not self.told_fin)
            or (self.final is None and self.consumed != self._consumed_granted)
        )

    def release(self) -> None:
        """Return unused credit to the budget, because nothing more will arrive."""
        self.budget.promised -= self.limit - self.received
        self.limit = self.received
        assert self.budget.promised >= 0


class Distances:
    """Upper bounds of the distance to peers: the shortest answer time of each, valid while neither end moves."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def answered(self, inbound: Inbound, peer: str, took: float) -> None:
        """Record that the stream's peer answered after ``took`` seconds. The minimum counts: busy is not far."""
        if len(self._seconds) >= _PEERS:
            self._seconds.clear()
        self._seconds[peer] = least = min(took, self._seconds.get(peer, took))
        inbound.reaches(least)

    def forget(self, peer: str) -> None:
        """Drop what is known about ``peer``: it may have moved."""
        self._seconds.pop(peer, None)
