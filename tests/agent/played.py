"""A loop with simulated time, which advances when nothing else is left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["played"]

_T = TypeVar("_T")


class _Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is going to happen any more"
        self.now += max(0.0, timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._played = _Selector()
        super().__init__(self._played)

    def time(self) -> float:
        return self._played.now


def played(work: Coroutine[Any, Any, _T]) -> _T:
    """Run it on a loop of its own whose time begins at 0; it may use timers, but no sockets or threads."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)
