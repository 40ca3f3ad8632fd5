"""Whether the other end of a session is alive: any received byte is life.

The agent asks after a silence, the relay only listens. A check that comes much
later than it was due says something about this process (it was stopped, or the
machine slept), not about the other end: then it asks once more, and only judges
by what comes back.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["Liveness", "Verdict"]

_LATE: Final = 2.0  # seconds: a timer that fires later than this is no verdict
_PROBE: Final = 3.0  # seconds that the other end then has to say anything


class Verdict(Enum):
    """What a check found."""

    ALIVE = "alive"
    ASK = "ask"  # send a PING
    DEAD = "dead"


class Liveness:
    """One session's silence. ``ping_after`` is ``None`` where one only listens; times are seconds."""

    __slots__ = ("_asked", "_dead_after", "_deadline", "_doubted", "_heard", "_ping_after")

    def __init__(self, ping_after: float | None, dead_after: float, now: float) -> None:
        self._ping_after = ping_after
        self._dead_after = dead_after
        self._heard = now
        self._asked: float | None = None  # when the PING of this silence was sent
        self._doubted = False  # what is asked now is to be answered at once, however short the silence was
        self._deadline = 0.0
        self._schedule()

    def _schedule(self) -> None:
        after = self._dead_after if self._ping_after is None or self._asked is not None else self._ping_after
        self._deadline = self._heard + after

    def heard(self, now: float) -> None:
        """Bytes arrived."""
        self._heard = now
        self._asked = None
        self._doubted = False

    def bear(self, seconds: float) -> None:
        """From now on take so much silence for nothing."""
        self._dead_after = seconds
        self._schedule()

    def doubt(self, now: float) -> None:
        """The clock by which silence is measured stood still for a while: a PING goes out, and its answer decides."""
        self._doubted = True
        self._probe(now)

    def _probe(self, now: float) -> None:
        self._asked = now
        self._deadline = now + _PROBE

    def next_deadline(self) -> float:
        """When :meth:`check` should be called; hearing something moves it, so ask again then."""
        return self._deadline

    def check(self, now: float) -> Verdict:
        """Judge. Call it at the deadline, after reading what waits to be read."""
        due = self._deadline
        if now < due:
            return Verdict.ALIVE
        if not self._doubted:
            self._schedule()
            if now < self._deadline:
                return Verdict.ALIVE
        if now - due > _LATE:
            self._probe(now)
            return Verdict.ASK
        if self._doubted:
            return Verdict.DEAD
        if now - self._heard < self._dead_after and self._asked is None and self._ping_after is not None:
            self._asked = now
            self._schedule()
            return Verdict.ASK
        return Verdict.DEAD
