"""The relay's periodic work with its store: notice changes by others, write notes, drop old rows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.seams import LiveHosts
from kdispatch_relay.store.repository import Repository

__all__ = ["Feed"]

# Rights revoked by another process (a draining relay, or the operator's command) end here within two seconds.
_LOOK: Final = 0.5
_WRITE: Final = 1.0
_WRITE_USED: Final = 60.0  # so the last use of a token is known to about a minute
_TIDY: Final = 600.0
_DAY: Final = 24 * 3600


class Feed:
    """The periodic work of one relay process. While it runs, every change in the store reaches ``live``."""

    def __init__(self, repository: Repository, live: LiveHosts, *, audit_days: int) -> None:
        self._repository = repository
        self._live = live
        self._audit_days = audit_days
        self._tasks: list[asyncio.Task[None]] = []
        self._last = 0

    async def start(self) -> None:
        """Start. From now on, every look-up sees all changes that were made before."""
        self._last = await self._repository.changes.newest()
        self._repository.changes.tell = self._live.recheck
        works = ((_LOOK, self._look), (_WRITE, self._repository.audit.write_notes), (_WRITE_USED, self._write_used))
        for seconds, work in (*works, (_TIDY, self._tidy)):
            self._tasks.append(asyncio.create_task(_repeat(seconds, work), name=f"feed: {work.__name__}"))

    async def close(self) -> None:
        """Stop, and write what was noted so far."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._repository.changes.tell = lambda _scope: None
        for work in (self._repository.audit.write_notes, self._repository.write_used):
            with contextlib.suppress(KdispatchError):
                await work()

    async def _look(self) -> None:
        self._live.expire(time.time())
        changes = self._repository.changes
        while found := await changes.since(self._last):
            if found[0][0] > self._last + 1 and await changes.are_lost(self._last):
                self._last = await changes.newest()
                self._live.recheck_all()
                return
            self._last = found[-1][0]
            for scope in dict.fromkeys(scope for _, scope in found):
                self._live.recheck(scope)

    async def _write_used(self) -> None:
        await self._repository.write_used()

    async def _tidy(self) -> None:
        await self._repository.audit.forget_before(int(time.time()) - self._audit_days * _DAY)
        await self._repository.audit.trim()
        await self._repository.changes.forget_old()
        await self._repository.forget_ended()


async def _repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        # The database has already logged that it is unavailable; the next turn tries again.
        with contextlib.suppress(KdispatchError):
            await work()
