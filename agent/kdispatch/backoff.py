"""Reconnect delays: a random part of the relay's spread first, then doubled, and shorter while streams wait."""

from __future__ import annotations

import math
import random
from typing import Final

__all__ = ["HURRY", "Backoff"]

_FIRST: Final = 0.5  # seconds: the spread until a relay has sent its own
_MOST: Final = 15.0  # longest wait between two tries, in seconds
_STABLE: Final = 10.0  # seconds that a session must last to reset the count of tries

#: Seconds after the loss of a session during which services are expected back soon: an outage of 90 s, and the tries
#: after it.
HURRY: Final = 100.0
#: Longest wait between two tries in that time. Both ends are back 2.1 s after the relay (median), one end after 1.4 s.
_HURRIED: Final = 4.0
#: The same bound in spreads, for a relay with many agents: of 1,000, at most 50 connect within 100 ms.
_SPREADS: Final = 2.0

#: If a short session carried at least this many bytes of programs, its link cuts connections after some amount: try
#: again at once. After fewer bytes the agent waits for the spread, so that no link makes it spin.
_CARRIED: Final = 64 * 1024
_AT_ONCE: Final = 0.1  # seconds: the jitter of that try

#: Seconds without any sign from a try before another one starts in parallel: the kernel repeats a lost SYN after 1 s
#: and 3 s, and later too rarely.
_SILENT: Final = 2.5


class Backoff:
    """The delays of one agent. Every end of a session adds jitter, not only failures to connect.

    ``away`` is the time in seconds without a working session. ``left`` is the time in seconds for which streams can
    still wait for one. By default nothing waits.
    """

    def __init__(self) -> None:
        self.spread = _FIRST
        self._tries = 0
        self._at_once = False

    def session_ended(self, seconds: float, carried: int) -> None:
        """A session ended after ``carried`` bytes of programs. If it was useful, the count of tries starts again."""
        if seconds >= _STABLE or carried:
            self._tries = 0
        self._at_once = seconds < _STABLE and carried >= _CARRIED

    def next_wait(self, at_least: float = 0.0, *, away: float = math.inf, left: float = math.inf) -> float:
        """Seconds to wait before the next try; ``at_least`` is what the relay asked for.

        ``at_least`` is cut short only if streams would end meanwhile: then to half of their time.
        """
        if self._at_once:
            self._at_once = False
            return at_least + random.uniform(0, min(self.spread, _AT_ONCE))  # noqa: S311 - jitter, no secret
        most = self._most(away, left)
        doubled = min(most, self.spread * 2**self._tries)
        self._tries = min(self._tries + 1, 16)
        # At the bound half of the wait is fixed: tries find the relay as soon, and fewer of them coincide.
        least = most / 2 if doubled == most < _MOST else 0.0
        if at_least + most > left > 0:
            at_least = min(at_least, left / 2)
        return at_least + random.uniform(least, max(doubled, min(self.spread, _MOST)))  # noqa: S311 - jitter, no secret

    def _most(self, away: float, left: float) -> float:
        """The bound of a wait, without what the relay asks for."""
        most = _MOST if away >= HURRY else min(_MOST, max(_HURRIED, _SPREADS * self.spread))
        if 0 < left < math.inf:
            most = min(most, max(self.spread, left / 2))
        return most

    def silence(self, away: float) -> float:
        """Seconds without an answer after which another try starts in parallel."""
        if away >= HURRY:
            return _MOST
        return max(_SILENT, _SPREADS * self.spread) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter, no secret
