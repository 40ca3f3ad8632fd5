"""Name look-ups, which fall back to earlier addresses while no resolver answers."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

__all__ = ["Names"]

#: Seconds to wait for a look-up if the name had addresses before: a working resolver answers within 1 s.
_SOON: Final = 1.5
#: Seconds for which earlier addresses are used. A dead resolver can't hide a relay's move for longer.
_KEPT: Final = 3600.0
#: Remembered names: the relay's URLs and a proxy's.
_NAMES: Final = 32

#: In the form of ``getaddrinfo``.
_Addresses = list[tuple[Any, ...]]


class Names:
    """Looks a name up for each connection, at most once at a time: each look-up holds a thread, and those are few."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[_Addresses, float]] = {}
        self._asked: dict[tuple[str, int], asyncio.Task[_Addresses]] = {}
        self._waiting: dict[asyncio.Task[_Addresses], int] = {}  # number of tries that wait for it

    async def addresses(self, host: str, port: int, seconds: float) -> _Addresses:
        """The addresses of the name. If the look-up fails, or has no answer soon, the earlier addresses.

        Raises ``TimeoutError`` after ``seconds``, or the ``OSError`` of the look-up.
        """
        key = host, port
        known, at = self._known.get(key, ([], 0.0))
        loop = asyncio.get_running_loop()
        if loop.time() - at > _KEPT:
            known = []
        task = self._look_up(key)
        self._waiting[task] = self._waiting.get(task, 0) + 1
        kept = False
        try:
            async with asyncio.timeout(min(seconds, _SOON) if known else seconds):
                return await asyncio.shield(task)
        except OSError:  # includes TimeoutError
            kept = bool(known)
            if kept:
                return known
            raise
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                if not kept:  # nothing waits for its answer, and the next try asks again
                    task.cancel()

    def _look_up(self, key: tuple[str, int]) -> asyncio.Task[_Addresses]:
        task = self._asked.get(key)
        if task is None or task.cancelling():
            task = self._asked[key] = asyncio.ensure_future(self._ask(key))
            task.add_done_callback(lambda done: self._answered(key, done))
        return task

    @staticmethod
    async def _ask(key: tuple[str, int]) -> _Addresses:
        host, port = key
        return list(await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))

    def _answered(self, key: tuple[str, int], task: asyncio.Task[_Addresses]) -> None:
        if self._asked.get(key) is task:
            del self._asked[key]
        if not task.cancelled() and task.exception() is None:  # this also marks the exception as retrieved
            self._known.pop(key, None)
            self._known[key] = task.result(), task.get_loop().time()
            if len(self._known) > _NAMES:
                del self._known[next(iter(self._known))]
