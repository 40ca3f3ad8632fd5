"""The database: reading, writing, and one kind of error for everything that goes wrong with it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.apart import upgrade_apart
from kdispatch_relay.store.engines import driver_errors, reading_engine, writing_engine
from kdispatch_relay.store.location import database_url, prepare_file
from kdispatch_relay.store.upgrade import upgrade_tables

__all__ = ["Database"]

_log = logging.getLogger(__name__)


class Database:
    """One database, by path or URL. Call :meth:`start` before and :meth:`close` after use, in one event loop.

    ``wait`` is how many seconds a lock of somebody else's is waited for. ``migrate_apart``: migrations, where there
    are any to run, run in a process of their own, so that one that stays does not keep what they need.
    Everything raises ``storage_unavailable`` when the database does not do what it is asked.
    """

    def __init__(self, location: str, *, wait: float = 5.0, migrate_apart: bool = False) -> None:
        self._url = database_url(location)
        self._wait = wait
        # A program that is not run by an interpreter of its own has none to start.
        self._apart = migrate_apart and bool(sys.executable)
        self._readers = reading_engine(self._url, wait)
        self._writers = writing_engine(self._url, wait)
        self._errors: tuple[type[Exception], ...] = (
            DBAPIError,
            PoolTimeoutError,
            sqlite3.Error,
            OSError,
            *driver_errors(self._url),
        )
        self._failing: set[str] = set()

    async def start(self) -> tuple[str | None, str | None]:
        """Make the file where there is none, and the tables up to date; returns the revisions before and after."""
        with self._translated("open"):
            if self._url.get_backend_name() == "sqlite":
                await asyncio.to_thread(prepare_file, Path(self._url.database or ""), self._wait)
            migrating = writing_engine(self._url, self._wait, foreign_keys=False)
            try:
                async with migrating.begin() as connection:
                    before, after = await connection.run_sync(upgrade_tables, only_look=self._apart)
            finally:
                await migrating.dispose()
            if self._apart and before != after:
                return await upgrade_apart(self._url.render_as_string(hide_password=False), self._wait)
            return before, after

    async def close(self) -> None:
        """Close all connections; without it their threads keep the process alive."""
        await self._readers.dispose()
        await self._writers.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one SELECT; several would each see a state of their own."""
        with self._translated("read"):
            async with self._readers.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at the block's end, and rolled back when the block raises.

        Read what you change ``with_for_update(key_share=True)``: SQLite holds the write lock anyway, PostgreSQL needs
        it. Lock a service before its invitations, these before tokens, and the admin last: PostgreSQL ends one of two
        that wait for each other. ``key_share`` lets in others that only refer to the row.
        ``IntegrityError`` passes through, for the caller to say which rule was broken.
        """
        with self._translated("write"):
            async with self._writers.begin() as connection:
                yield connection

    @contextmanager
    def _translated(self, work: str) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except self._errors as error:
            reason = getattr(error, "orig", None) or error
            if work == "open":  # at the start, where somebody is there to read it
                raise KdispatchError("storage_unavailable", f"The database can't be opened: {reason}.") from error
            # The first failure is worth a line; one for each request would only fill the log.
            if work not in self._failing:
                _log.warning("can't %s the database: %s", work, reason)
            self._failing.add(work)
            raise KdispatchError("storage_unavailable") from error
        if work in self._failing:
            self._failing.remove(work)
            _log.warning("can %s the database again", work)
