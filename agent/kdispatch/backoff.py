"""When to try again: a random part of the relay's spread at first, then doubling with full jitter."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["Backoff"]

_FIRST: Final = 0.5  # seconds: the spread until a relay has told its own
_MOST: Final = 15.0
_STABLE: Final = 10.0  # seconds that a session must last before the next loss counts as a first one


class Backoff:
    """One agent's patience. Jitter follows every end of a session, not only failures to connect."""

    def __init__(self) -> None:
        self.spread = _FIRST
        self._tries = 0

    def session_lasted(self, seconds: float) -> None:
        """A session ended; one that was stable starts the count anew."""
        if seconds >= _STABLE:
            self._tries = 0

    def next_wait(self, at_least: float = 0.0) -> float:
        """Seconds to wait before the next try."""
        most = min(_MOST, self.spread * 2**self._tries)
        self._tries = min(self._tries + 1, 16)
        return at_least + random.uniform(0, max(most, min(self.spread, _MOST)))  # noqa: S311 - jitter, no secret
