"""Records of streams that ended recently. They answer a peer that was disconnected at that time."""

from __future__ import annotations

from dataclasses import dataclass

from kdispatch_protocol.limits import Limits

__all__ = ["Tombstone", "Tombstones"]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """``peer`` is the bound process; ``heard``: bytes of it arrived, so its request may have been carried out."""

    code: str
    peer: str
    heard: bool
    expires: float


class Tombstones:
    """A table bounded by count and by time. The oldest record goes first, and before its time only for lack of room."""

    __slots__ = ("_blind_until", "_dead", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._dead: dict[str, Tombstone] = {}  # by uuid, oldest first
        self._blind_until = 0.0

    def __len__(self) -> int:
        return len(self._dead)

    def add(self, uuid: str, code: str, peer: str, since: float, *, heard: bool) -> None:
        """Record that a stream ended; ``code`` is ``closed`` if it finished normally. Times are seconds.

        The peer waits for at most one grace from ``since``: now, or the time at which the stream was detached.
        """
        dead, limits = self._dead, self._limits
        dead.pop(uuid, None)
        dead[uuid] = Tombstone(code, peer, heard, since + limits.grace + limits.tombstone_extra)
        if len(dead) > limits.tombstones:
            # From now on "unknown_stream" could be wrong, and the peer could repeat a request that was carried out.
            self._blind_until = dead.pop(next(iter(dead))).expires

    def answer(self, uuid: str, peer: str, now: float, *, opening: bool) -> str:
        """The code that answers an ATTACH from process ``peer`` for a stream that does not exist here.

        ``opening``: the peer does not know whether the stream was opened. On ``unknown_stream`` it opens the stream
        elsewhere.
        """
        tombstone = self._dead.get(uuid)
        if tombstone is not None:
            # A client that had sent nothing may have opened the same stream at another host since then.
            foreign = tombstone.peer != peer
            return "unknown_stream" if foreign or (opening and not tombstone.heard) else tombstone.code
        return "resume_expired" if now < self._blind_until else "unknown_stream"

    def purge(self, now: float) -> None:
        """Remove the records that expired."""
        while self._dead:
            uuid, tombstone = next(iter(self._dead.items()))
            if tombstone.expires > now:
                return
            del self._dead[uuid]

    def next_deadline(self) -> float | None:
        """When the oldest record expires; ``None`` if there is none."""
        return next(iter(self._dead.values())).expires if self._dead else None
