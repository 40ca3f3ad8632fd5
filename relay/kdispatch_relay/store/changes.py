"""The feed of revocations for all relay processes on one database: each process checks what runs on it again.

A transaction that revokes a right also writes a row here, so no change is without one. The process that made the change
tells its own switch at once; the others read the rows (:class:`kdispatch_relay.feed.Feed`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Change
from kdispatch_relay.store.tidying import drop_where

__all__ = ["Changes", "Taking"]

_LOCK: Final = 0x6B64_6963  # this program's second key among PostgreSQL's advisory locks
_KEPT: Final = 24 * 3600  # seconds; a relay that was stopped for longer has no sessions left either
_MOST: Final = 100_000  # changes kept, 8 MB; a relay that missed some checks everything that runs on it
_AT_ONCE: Final = 1_000  # changes in one answer


@dataclass(slots=True)
class Taking:
    """A transaction that changes rights to what rests on ``scope``, ``handle/name`` or ``handle``.

    A caller that finds nothing to change calls :meth:`nothing`; one that affects less narrows the scope.
    """

    connection: AsyncConnection
    scope: str

    def nothing(self) -> None:
        """Nothing changes: no row is written, and no relay has to check anything."""
        self.scope = ""


class Changes:
    """The feed. ``tell`` is called with the scope of each change by this process, once it is committed.

    Before that, ``forget`` is called with it: look-ups from before the change no longer count.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.tell: Callable[[str], None] = lambda _scope: None
        self.forget: Callable[[str], None] = lambda _scope: None

    @asynccontextmanager
    async def taking(self, scope: str) -> AsyncIterator[Taking]:
        """A write transaction. All relays learn of it, unless the caller says that it changes nothing."""
        async with self._database.write() as connection:
            taking = Taking(connection, scope)
            yield taking
            if not taking.scope:
                return
            if connection.dialect.name == "postgresql":
                # Rows become visible in the order of their ids: a reader that has seen one has missed none before it.
                await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            await connection.execute(insert(Change).values(scope=taking.scope))
        self.forget(taking.scope)
        self.tell(taking.scope)

    async def newest(self) -> int:
        """The id of the last change, or 0."""
        async with self._database.read() as connection:
            return (await connection.execute(select(func.max(Change.id)))).scalar_one() or 0

    async def since(self, last: int) -> list[tuple[int, str]]:
        """Ids and scopes of the next 1,000 changes after ``last``, in order."""
        query = select(Change.id, Change.scope).where(Change.id > last).order_by(Change.id).limit(_AT_ONCE)
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [(number, scope) for number, scope in rows]

    async def are_lost(self, last: int) -> bool:
        """Whether changes after ``last`` may have been dropped before they were read."""
        async with self._database.read() as connection:
            oldest: int | None = (await connection.execute(select(func.min(Change.id)))).scalar_one()
        return oldest is not None and oldest > last + 1

    async def forget_old(self) -> None:
        """Drop changes that every relay has read long ago, and the oldest if there are too many."""
        await drop_where(self._database, Change.id, Change.at < int(time.time()) - _KEPT)
        await drop_where(self._database, Change.id, Change.id <= await self.newest() - _MOST)
