"""What the relay does on its own with its store: hear of others' changes, write what was noted, drop what is old."""

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

# What another process took from somebody, a relay that drains or the operator's command, ends here within two seconds.
_LOOK: Final = 0.5
_WRITE: Final = 1.0
_WRITE_USED: Final = 60.0  # tokens show when they were used last to about a minute
_TIDY: Final = 600.0
_DAY: Final = 24 * 3600


class Feed:
    """One relay process's; while it runs, every change of the store reaches ``live``."""

    def __init__(self, repository: Repository, live: LiveHosts, *, audit_days: int) -> None:
        self._repository = repository
        self._live = live
        self._audit_days = audit_days
        self._tasks: list[asyncio.Task[None]] = []
        self._last = 0

    async def start(self) -> None:
        """Begin. What was changed before is known to be so by every look-up from now on."""
        self._last = await self._repository.changes.newest()
        self._repository.changes.tell = self._live.recheck
        works = ((_LOOK, self._look), (_WRITE, self._repository.audit.write_notes), (_WRITE_USED, self._write_used))
        for seconds, work in (*works, (_TIDY, self._tidy)):
            self._tasks.append(asyncio.create_task(_repeat(seconds, work), name=f"feed: {work.__name__}"))

    async def close(self) -> None:
        """End, and write what was noted until now."""
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
        changes = await self._repository.changes.since(self._last)
        self._last = max((number for number, _ in changes), default=self._last)
        for scope in dict.fromkeys(scope for _, scope in changes):  # each once, however often it changed
            self._live.recheck(scope)

    async def _write_used(self) -> None:
        await self._repository.write_used()

    async def _tidy(self) -> None:
        await self._repository.audit.forget_before(int(time.time()) - self._audit_days * _DAY)
        await self._repository.changes.forget_old()
        await self._repository.forget_ended()


async def _repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        # The database has told that it is away, and the next turn comes.
        with contextlib.suppress(KdispatchError):
            await work()
