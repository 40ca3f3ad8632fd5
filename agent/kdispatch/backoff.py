"""When to try again: a random part of the relay's spread at first, then doubling, and sooner where something waits."""

from __future__ import annotations

import math
import random
from typing import Final

__all__ = ["HURRY", "Backoff"]

_FIRST: Final = 0.5  # seconds: the spread until a relay has told its own
_MOST: Final = 15.0  # seconds between two tries
_STABLE: Final = 10.0  # seconds that a session must last before the next loss counts as a first one

#: Seconds after the loss of a session in which services that were there are soon to be there again: an outage of 90 s,
#: and the tries behind it.
HURRY: Final = 100.0
#: Seconds between two tries in that time. Both ends are back 2.1 s after the relay (median), one of them after 1.4 s.
_HURRIED: Final = 4.0
#: The same in spreads, where a relay has many agents: of 1,000, no more than 50 come in 100 ms.
_SPREADS: Final = 2.0

#: Bytes of programs in a short session after which the next one is tried for at once: its link cuts what has carried
#: so much. After less the spread is waited for, so that no link makes an agent spin.
_CARRIED: Final = 64 * 1024
_AT_ONCE: Final = 0.1  # seconds: the jitter of that try

#: Seconds without any sign from a try before another one begins beside it: a SYN that was lost is sent again after 1 s
#: and 3 s, and later too seldom.
_SILENT: Final = 2.5


class Backoff:
    """One agent's patience. Jitter follows every end of a session, not only failures to connect.

    ``away`` is for how many seconds there has been no session that worked, ``left`` how many seconds streams can
    still wait for one. By default nothing waits.
    """

    def __init__(self) -> None:
        self.spread = _FIRST
        self._tries = 0
        self._at_once = False

    def session_ended(self, seconds: float, carried: int) -> None:
        """A session ended that had moved so many bytes for programs; one that was of use starts the count anew."""
        if seconds >= _STABLE or carried:
            self._tries = 0
        self._at_once = seconds < _STABLE and carried >= _CARRIED

    def next_wait(self, at_least: float = 0.0, *, away: float = math.inf, left: float = math.inf) -> float:
        """Seconds to wait before the next try; ``at_least`` is what the relay asked for.

        That is cut short only where streams would end meanwhile: then half of their time is waited for.
        """
        if self._at_once:
            self._at_once = False
            return at_least + random.uniform(0, min(self.spread, _AT_ONCE))  # noqa: S311 - jitter, no secret
        most = self._most(away, left)
        doubled = min(most, self.spread * 2**self._tries)
        self._tries = min(self._tries + 1, 16)
        # At the bound half of it is fixed: as many tries find a relay as soon, and fewer come at the same moment.
        least = most / 2 if doubled == most < _MOST else 0.0
        if at_least + most > left > 0:
            at_least = min(at_least, left / 2)
        return at_least + random.uniform(least, max(doubled, min(self.spread, _MOST)))  # noqa: S311 - jitter, no secret

    def _most(self, away: float, left: float) -> float:
        """The bound of a wait without what a relay asks for."""
        most = _MOST if away >= HURRY else min(_MOST, max(_HURRIED, _SPREADS * self.spread))
        if 0 < left < math.inf:
            most = min(most, max(self.spread, left / 2))
        return most

    def silence(self, away: float) -> float:
        """Seconds without an answer after which another try begins beside one that is under way."""
        if away >= HURRY:
            return _MOST
        return max(_SILENT, _SPREADS * self.spread) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter, no secret
