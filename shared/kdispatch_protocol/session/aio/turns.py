"""Turns for sessions that bring many small frames: one reads in each turn of the loop, in rotation over sources.

Such a read takes the relay a millisecond. If a hundred sessions had one in each turn of the loop, all others would
notice. In this queue they all together take as much as one, and a source gains nothing from more sessions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Turn", "Turns"]


class Turn:
    """A place in the queue."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Give up the place."""
        self.call = None


class Turns:
    """The queue of one event loop. A session has at most one place in it, so the number of sessions bounds it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, deque[Turn]] = {}  # by source; the next source's turn is first
        self._going = False

    def take(self, source: str, call: Callable[[], None]) -> Turn:
        """Call ``call`` in a later turn of the loop, one call per turn."""
        turn = Turn(call)
        self._waiting.setdefault(source, deque()).append(turn)
        if not self._going:
            self._going = True
            self._loop.call_soon(self._go)
        return turn

    def _go(self) -> None:
        call = None
        while call is None and self._waiting:
            source = next(iter(self._waiting))
            turns = self._waiting.pop(source)
            call = turns.popleft().call
            if turns:
                self._waiting[source] = turns
        self._going = bool(self._waiting)
        if self._going:
            self._loop.call_soon(self._go)
        if call is not None:
            call()
