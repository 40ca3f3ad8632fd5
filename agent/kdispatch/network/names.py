"""Addresses of names, and those of before for when nobody resolves the name any more."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

__all__ = ["Names"]

#: Seconds for a look-up's answer where the name had addresses before: a resolver that is there answers within 1 s.
_SOON: Final = 1.5
#: Seconds for which addresses of before are used: a relay that has moved is not missed for longer by a dead resolver.
_KEPT: Final = 3600.0
#: Names that are remembered: the relay's URLs and a proxy's.
_NAMES: Final = 32

#: As ``getaddrinfo`` gives them.
_Addresses = list[tuple[Any, ...]]


class Names:
    """Asks for each connection anew. A name has one look-up under way: each holds a thread, and there are few."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[_Addresses, float]] = {}
        self._asked: dict[tuple[str, int], asyncio.Task[_Addresses]] = {}

    async def addresses(self, host: str, port: int, seconds: float) -> _Addresses:
        """Those of the name; where the look-up fails, or has no answer soon, those that it had before.

        Raises ``TimeoutError`` after so many seconds, or the ``OSError`` of the look-up.
        """
        key = host, port
        known, at = self._known.get(key, ([], 0.0))
        loop = asyncio.get_running_loop()
        if loop.time() - at > _KEPT:
            known = []
        try:
            async with asyncio.timeout(min(seconds, _SOON) if known else seconds):
                return await asyncio.shield(self._look_up(key))
        except OSError:  # a time-out is one
            if not known:
                raise
            return known

    def _look_up(self, key: tuple[str, int]) -> asyncio.Task[_Addresses]:
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(self._ask(key))
            task.add_done_callback(lambda done: self._answered(key, done))
        return task

    @staticmethod
    async def _ask(key: tuple[str, int]) -> _Addresses:
        host, port = key
        return list(await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))

    def _answered(self, key: tuple[str, int], task: asyncio.Task[_Addresses]) -> None:
        del self._asked[key]
        if not task.cancelled() and task.exception() is None:  # which also says that it was seen
            self._known.pop(key, None)
            self._known[key] = task.result(), task.get_loop().time()
            if len(self._known) > _NAMES:
                del self._known[next(iter(self._known))]
