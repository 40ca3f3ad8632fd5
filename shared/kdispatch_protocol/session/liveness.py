"""Liveness of a session: whether the other end is alive, and whether boxes on the path keep the session open.

Any received byte proves that the other end is alive. An agent sends a PING when
no message went in one of the two directions for a while: some boxes count only
one direction, and some ignore WebSocket control frames. The relay only listens.
A check that comes much later than due says something about this process (it was
stopped, or the machine slept), not about the other end. Then it sends one more
PING, and judges only by the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["Course", "Cut", "Liveness", "Verdict"]

_LATE: Final = 2.0  # seconds: a timer that fires later than this gives no verdict
_PROBE: Final = 3.0  # seconds that the other end then has to send anything
# Parts of the interval after which an agent pings. A message within the first part belongs to the exchange before it.
# An end within the second part after we sent something is the answer to it.
_EXCHANGE: Final = 1 / 15
_ANSWER: Final = 1 / 5


class Verdict(Enum):
    """Result of a check."""

    ALIVE = "alive"
    ASK = "ask"  # send a PING
    DEAD = "dead"


class Cut(Enum):
    """How a session ended that neither end closed on purpose."""

    CLOSED = "closed"  # the connection was closed or reset without a close frame
    UNANSWERED = "unanswered"  # answers stopped coming


@dataclass(frozen=True, slots=True)
class Course:
    """Record of a session, from which the agent learns what its path allows. Times are seconds."""

    lasted: float
    survived: float  # the longest silence, without a message either way, after which a message arrived
    silence: float  # the silence before the end, or before the first message without an answer
    cut: Cut | None  # None: it ended otherwise, still runs, or this process or its machine had stopped


class Liveness:
    """Measures one session's silence. ``ping_after`` is ``None`` for an end that only listens; times are seconds."""

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
        self._heard = now  # the last received byte
        self._arrived = now  # the last received message
        self._sent = now  # the last sent message
        self._asked = now  # the last PING
        self._looked = now  # the last check
        self._tried = 0.0  # the silence before the first message that we sent without an answer so far
        self._tried_at = now
        self._doubted = False  # the answer to this PING decides, however short the silence was
        self.survived = 0.0  #: the longest silence after which a message arrived
        self.unsure = False  #: this process had stopped, and no message has arrived since
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
        """Record that bytes of any kind arrived."""
        self._heard = now
        self._doubted = False

    def passed(self, arrived: float | None, sent: float | None) -> None:
        """Record messages since the last check: when the last one arrived, and when we last sent one; ``None`` if none.

        The time of the first of them is not known, so the silence before it counts up to the last check. Only an end
        that pings needs to call this.
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
        """The silence that may have caused the end of the session now, by this kind of ``cut``."""
        patience = (self._ping_after or 0.0) * _ANSWER
        if cut is Cut.UNANSWERED or (self._tried and now - self._tried_at <= patience):
            return self._tried
        return now - self._last

    def bear(self, seconds: float) -> None:
        """From now on, tolerate this much silence."""
        self._dead_after = seconds
        self._schedule()

    def doubt(self, now: float) -> None:
        """The clock that measures silence had stopped for a while: a PING is sent, and its answer decides."""
        self._doubted = True
        self._probe(now)

    def _probe(self, now: float) -> None:
        self.unsure = True
        self._asked = now
        self._deadline = now + _PROBE

    def next_deadline(self) -> float:
        """When to call :meth:`check`. Received bytes move this time, so ask again then."""
        return self._deadline

    def check(self, now: float) -> Verdict:
        """Judge. Call this at the deadline, after reading all pending bytes."""
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
