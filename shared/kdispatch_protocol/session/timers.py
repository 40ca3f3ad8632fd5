"""Many deadlines in one heap, without a clock of its own: the caller supplies the time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

__all__ = ["Timer", "Timers"]

# With fewer cancelled deadlines than this, a sweep is not worth it.
_SWEEP = 256


class Timer:
    """One deadline. Cancelling it releases its callback at once."""

    __slots__ = ("_owner", "call")

    def __init__(self, owner: Timers, call: Callable[[float], None]) -> None:
        self._owner = owner
        self.call: Callable[[float], None] | None = call

    def cancel(self) -> None:
        """Cancel the deadline. Does nothing if it was cancelled or has fired."""
        if self.call is not None:
            self.call = None
            self._owner.note_cancelled()


class Timers:
    """A set of deadlines."""

    __slots__ = ("_cancelled", "_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def add(self, when: float, call: Callable[[float], None]) -> Timer:
        """Call ``call(now)`` once, when ``when`` has come."""
        timer = Timer(self, call)
        self._count += 1  # orders equal times
        heapq.heappush(self._heap, (when, self._count, timer))
        return timer

    def next_deadline(self) -> float | None:
        """The earliest deadline, or ``None``."""
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[Callable[[float], None]]:
        """Remove and yield the due callbacks, in order of time."""
        while self._heap and self._heap[0][0] <= now:
            timer = heapq.heappop(self._heap)[2]
            call, timer.call = timer.call, None
            if call is None:
                self._cancelled -= 1
            else:
                yield call

    def note_cancelled(self) -> None:
        """Called by a timer: sweep when most of the heap is cancelled, so that its size follows the pending ones."""
        self._cancelled += 1
        if self._cancelled > _SWEEP and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
