"""What became of streams that ended lately: the answer to a peer that was away when it happened."""

from __future__ import annotations

from dataclasses import dataclass

from kdispatch_protocol.limits import Limits

__all__ = ["Tombstone", "Tombstones"]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """``peer`` is the process it was bound to; ``heard``: bytes of that had arrived, so what it asked may be done."""

    code: str
    peer: str
    heard: bool
    expires: float


class Tombstones:
    """Bounded by count and by time; the oldest go first, and none before its time but for want of room."""

    __slots__ = ("_blind_until", "_dead", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._dead: dict[str, Tombstone] = {}  # by uuid, in order of time
        self._blind_until = 0.0

    def __len__(self) -> int:
        return len(self._dead)

    def add(self, uuid: str, code: str, peer: str, since: float, *, heard: bool) -> None:
        """A stream ended; ``code`` is ``closed`` where it finished. Times are seconds.

        Its peer waits for a grace at most from ``since``: from now, or from when the stream was detached.
        """
        dead, limits = self._dead, self._limits
        dead.pop(uuid, None)
        dead[uuid] = Tombstone(code, peer, heard, since + limits.grace + limits.tombstone_extra)
        if len(dead) > limits.tombstones:
            # From now on "I don't know it" could be a lie, and a request be done twice for it.
            self._blind_until = dead.pop(next(iter(dead))).expires

    def answer(self, uuid: str, peer: str, now: float, *, opening: bool) -> str:
        """The code for the ATTACH that the process ``peer`` sent of a stream that is not here.

        ``opening``: the peer does not know whether the stream was ever opened, and will open it elsewhere
        when it hears ``unknown_stream``.
        """
        tombstone = self._dead.get(uuid)
        if tombstone is not None:
            # A client that had sent nothing may have had the same stream with another host since.
            foreign = tombstone.peer != peer
            return "unknown_stream" if foreign or (opening and not tombstone.heard) else tombstone.code
        return "resume_expired" if now < self._blind_until else "unknown_stream"

    def purge(self, now: float) -> None:
        """Forget those whose time is over."""
        while self._dead:
            uuid, tombstone = next(iter(self._dead.items()))
            if tombstone.expires > now:
                return
            del self._dead[uuid]

    def next_deadline(self) -> float | None:
        """When the oldest one's time is over."""
        return next(iter(self._dead.values())).expires if self._dead else None
