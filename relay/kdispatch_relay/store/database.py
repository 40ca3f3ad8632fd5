"""The database: reading, writing, and one kind of error for all its failures."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_relay.store.apart import upgrade_apart
from kdispatch_relay.store.engines import driver_errors, reading_engine, writing_engine
from kdispatch_relay.store.failures import StorageError, explain, words
from kdispatch_relay.store.location import database_url, prepare_file
from kdispatch_relay.store.models import Relay
from kdispatch_relay.store.place import OpenFiles, identity
from kdispatch_relay.store.upgrade import upgrade_tables

__all__ = ["Database"]

_FILES: Final = "kdispatch files"  # the key of a connection's info with the files that it has open

_log = logging.getLogger(__name__)


class Database:
    """One database, by path or URL. Call :meth:`start` before and :meth:`close` after use, in one event loop.

    ``wait`` is how many seconds to wait for another program's lock. With ``migrate_apart``, migrations run in a process
    of their own, so that a relay does not keep the memory that they need. Every method raises ``storage_unavailable``
    if the database fails.
    """

    def __init__(self, location: str, *, wait: float = 5.0, migrate_apart: bool = False) -> None:
        self._url = database_url(location)
        self._wait = wait
        # In a program with an embedded Python there is no interpreter to start.
        self._apart = migrate_apart and bool(sys.executable)
        self._readers = reading_engine(self._url, wait)
        self._writers = writing_engine(self._url, wait)
        self._errors: tuple[type[Exception], ...] = (
            DBAPIError,
            PoolTimeoutError,
            sqlite3.Error,
            OSError,
            MemoryError,
            *driver_errors(self._url),
        )
        self._failing: set[str] = set()
        self._written = -math.inf  # time of the last commit
        sqlite = self._url.get_backend_name() == "sqlite"
        self._file = Path(self._url.database or "") if sqlite else None
        self._found = (0, 0)  # the file's identity when it was opened
        self._open: OpenFiles | None = None  # the files of the connection that wrote last

    async def start(self) -> tuple[str | None, str | None]:
        """Create the file if it is missing, and bring the tables up to date; returns the revisions before and after."""
        with self._translated("open"):
            if self._file is not None:
                await asyncio.to_thread(prepare_file, self._file, self._wait)
                self._found = await asyncio.to_thread(identity, self._file)
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
        """Close all connections; without this call, their threads keep the process alive."""
        await self._readers.dispose()
        await self._writers.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one SELECT; several would not see the same state."""
        with self._translated("read"):
            async with self._readers.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block, and rolls back if the block raises.

        Read what you change ``with_for_update(key_share=True)``: SQLite holds the write lock anyway, but PostgreSQL
        needs it. Lock a service before its invitations, those before tokens, and the admin last: otherwise PostgreSQL
        ends one of two transactions that wait for each other. ``key_share`` lets in transactions that only refer to the
        row.

        ``IntegrityError`` passes through, so that the caller can say which rule was broken. If the file at the path is
        not the open one, nothing is committed, because it would be lost.
        """
        with self._translated("write"):
            async with self._writers.begin() as connection:
                files = await self._files(connection)
                yield connection
                if files is not None:
                    await asyncio.to_thread(files.check)
            self._written = time.monotonic()

    async def probe(self, often: float) -> None:
        """Return if a write would be kept now; it changes nothing that anyone reads.

        It takes the write lock, which another program may hold. It writes a page, unless one was written within
        ``often`` seconds.
        """
        written = self._written
        due = "write" in self._failing or time.monotonic() - written >= often
        async with self.write() as connection:
            await self._check_usable()
            if due:
                await _touch(connection)
        if not due:  # a transaction without changes proves nothing about the disk
            self._written = written

    async def _check_usable(self) -> None:
        if self._open is not None:
            await asyncio.to_thread(self._open.check_usable)

    async def _files(self, connection: AsyncConnection) -> OpenFiles | None:
        """The files that this connection has open; ``None`` if the database is a server."""
        if self._file is not None:
            if _FILES not in connection.info:
                connection.info[_FILES] = await asyncio.to_thread(OpenFiles, self._file, self._found)
            self._open = connection.info[_FILES]
        return self._open

    @contextmanager
    def _translated(self, work: str) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except self._errors as error:
            reason = getattr(error, "orig", None) or error
            failure = explain(reason)
            if work == "open":  # at the start, when the operator reads the message
                hint = failure.hint if failure.known else "Check --database, and the file or the server that it names."
                raise StorageError(f"The database can't be opened: {words(reason)}.", hint) from error
            # Only the first failure is logged; one line for each request would fill the log.
            if work not in self._failing:
                _log.warning("The relay can't %s the database: %s.", work, words(reason))
            self._failing.add(work)
            raise failure from error
        if work in self._failing:
            self._failing.remove(work)
            _log.warning("The relay can %s the database again.", work)


async def _touch(connection: AsyncConnection) -> None:
    """Change a value that no one reads, so that the commit writes to the disk."""
    if connection.dialect.name == "sqlite":
        # A number in the file's header that SQLite itself does not use. SQLite does not write a row that stays the
        # same.
        number = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA user_version = {(number + 1) % 2**31}")
    else:
        await connection.execute(update(Relay).values(relay_id=Relay.relay_id))
