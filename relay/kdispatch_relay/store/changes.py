"""What was taken from somebody, for all relay processes on one database: each asks again what runs on it.

Whoever takes something writes a row in the same transaction, so that a change is never without it. The process that did
it tells its own switch at once; the others read the rows (:class:`kdispatch_relay.feed.Feed`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Change

__all__ = ["Changes", "Taking"]

_LOCK: Final = 0x6B64_6963  # this program's second key among PostgreSQL's advisory locks
_KEPT: Final = 24 * 3600  # seconds; a relay that was away for longer has no sessions left either


@dataclass(slots=True)
class Taking:
    """A transaction that takes something from all that rests on ``scope``, ``handle/name`` or ``handle``.

    A caller that finds nothing to change says so by :meth:`nothing`; one that touches less narrows the scope.
    """

    connection: AsyncConnection
    scope: str

    def nothing(self) -> None:
        """It is so already, or nothing has that name: no row is written, and no relay has anything to do."""
        self.scope = ""


class Changes:
    """The feed. ``tell`` hears the scope of each change that this process made, once it is committed.

    Before that ``forget`` is called with it: what was looked up before the change does not count.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.tell: Callable[[str], None] = lambda _scope: None
        self.forget: Callable[[str], None] = lambda _scope: None

    @asynccontextmanager
    async def taking(self, scope: str) -> AsyncIterator[Taking]:
        """A write transaction; unless it is said to change nothing, all relays hear of it."""
        async with self._database.write() as connection:
            taking = Taking(connection, scope)
            yield taking
            if not taking.scope:
                return
            if connection.dialect.name == "postgresql":
                # Rows become visible in the order of their ids: a reader that has seen one misses none before it.
                await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            await connection.execute(insert(Change).values(scope=taking.scope))
        self.forget(taking.scope)
        self.tell(taking.scope)

    async def newest(self) -> int:
        """The id of the last change, or 0."""
        async with self._database.read() as connection:
            return (await connection.execute(select(func.max(Change.id)))).scalar_one() or 0

    async def since(self, last: int) -> list[tuple[int, str]]:
        """Ids and scopes of the changes behind ``last``, in their order."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(Change.id, Change.scope).where(Change.id > last).order_by(Change.id))
            return [(number, scope) for number, scope in rows]

    async def forget_old(self) -> None:
        """Drop what every relay has read long ago."""
        async with self._database.write() as connection:
            await connection.execute(delete(Change).where(Change.at < int(time.time()) - _KEPT))
