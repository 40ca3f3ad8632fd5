"""Whether the other end of a session is alive, and whether the session is alive for what is between the ends.

Any received byte is life. An agent asks whenever no message went one of the two
ways for a while: some boxes count one way only, and some do not count the
control frames of WebSockets. The relay only listens. A check that comes much
later than it was due says something about this process (it was stopped, or the
machine slept), not about the other end: then it asks once more, and only judges
by what comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["Course", "Cut", "Liveness", "Verdict"]

_LATE: Final = 2.0  # seconds: a timer that fires later than this is no verdict
_PROBE: Final = 3.0  # seconds that the other end then has to say anything
# Parts of the time after which an agent asks: what comes this soon belongs to what was before it, and an end that comes
# this soon after something was sent is the answer to it.
_EXCHANGE: Final = 1 / 15
_ANSWER: Final = 1 / 5


class Verdict(Enum):
    """What a check found."""

    ALIVE = "alive"
    ASK = "ask"  # send a PING
    DEAD = "dead"


class Cut(Enum):
    """How a session ended that nobody wanted to end."""

    CLOSED = "closed"  # its connection was closed or reset, without a goodbye
    UNANSWERED = "unanswered"  # nothing came back any more


@dataclass(frozen=True, slots=True)
class Course:
    """How a session went, for who learns from it what its path allows. Times are seconds."""

    lasted: float
    survived: float  # the longest time without a message either way after which one arrived
    silence: float  # the time without a message either way that was before the end, or before what had no answer
    cut: Cut | None  # none where it ended otherwise, has not ended, or this process or its machine had stood still


class Liveness:
    """One session's silence. ``ping_after`` is ``None`` where one only listens; times are seconds."""

    __slots__ = (
        "_arrived",
        "_asked",
        "_dead_after",
        "_deadline",
        "_doubted",
        "_heard",
        "_looked",
        "_ping_after",
        "_sent",
        "_tried",
        "_tried_at",
        "survived",
        "unsure",
    )

    def __init__(self, ping_after: float | None, dead_after: float, now: float) -> None:
        self._ping_after = ping_after
        self._dead_after = dead_after
        self._heard = now  # the last byte
        self._arrived = now  # the last message of the other end's
        self._sent = now  # the last one of ours
        self._asked = now  # the last PING
        self._looked = now  # the last check
        self._tried = 0.0  # how long it had been silent when we sent what nothing has arrived after
        self._tried_at = now
        self._doubted = False  # what is asked now is to be answered at once, however short the silence was
        self.survived = 0.0  #: the longest silence after which a message arrived
        self.unsure = False  #: this process stood still, and no message has arrived since
        self._deadline = 0.0
        self._schedule()

    def _schedule(self) -> None:
        self._deadline = self._heard + self._dead_after
        if self._ping_after is not None:
            ask = max(min(self._arrived, self._sent), self._asked) + self._ping_after
            self._deadline = min(self._deadline, ask)

    @property
    def _last(self) -> float:
        return max(self._arrived, self._sent, self._asked)

    def heard(self, now: float) -> None:
        """Bytes arrived, of whatever kind."""
        self._heard = now
        self._doubted = False

    def passed(self, arrived: float | None, sent: float | None) -> None:
        """Since the last check messages went by: the last one of the other end's, and the last one of ours, if any.

        When the first one went by is not known: then the silence before it counts up to that check. Only who asks
        needs to call this.
        """
        before = self._looked - self._last
        if arrived is not None:
            self.survived = max(self.survived, self._tried, before)
            self._tried = 0.0
            self._arrived = arrived
            self.unsure = False
        elif sent is not None:
            self._try(before, sent)
        if sent is not None:
            self._sent = sent

    def _try(self, silence: float, when: float) -> None:
        if self._ping_after is not None and silence > self._ping_after * _EXCHANGE:
            self._tried, self._tried_at = silence, when

    def silence(self, now: float, cut: Cut) -> float:
        """The silence for which the session may have ended now, in this way."""
        patience = (self._ping_after or 0.0) * _ANSWER
        if cut is Cut.UNANSWERED or (self._tried and now - self._tried_at <= patience):
            return self._tried
        return now - self._last

    def bear(self, seconds: float) -> None:
        """From now on take so much silence for nothing."""
        self._dead_after = seconds
        self._schedule()

    def doubt(self, now: float) -> None:
        """The clock by which silence is measured stood still for a while: a PING goes out, and its answer decides."""
        self._doubted = True
        self._probe(now)

    def _probe(self, now: float) -> None:
        self.unsure = True
        self._asked = now
        self._deadline = now + _PROBE

    def next_deadline(self) -> float:
        """When :meth:`check` should be called; hearing something moves it, so ask again then."""
        return self._deadline

    def check(self, now: float) -> Verdict:
        """Judge. Call it at the deadline, after reading what waits to be read."""
        self._looked = now
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
        if self._doubted or self._ping_after is None or now >= self._heard + self._dead_after:
            return Verdict.DEAD
        self._try(now - self._last, now)
        self._asked = now
        self._schedule()
        return Verdict.ASK
