"""Engines for reading and for writing, set up so that no write is lost.

By default, concurrent read-modify-writes in SQLite can be lost without an error: Python's driver begins a transaction
only at the first write, when the values read may already be outdated. So the driver's own handling is switched off, and
a writer takes the file's write lock before it reads (``BEGIN IMMEDIATE``).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from kdispatch_protocol.errors import KdispatchError

__all__ = ["driver_errors", "reading_engine", "writing_engine"]

_SQLITE_READERS = 4  # connections, each with its own thread; look-ups gain nothing from more
_POSTGRES_READERS = 8
_POSTGRES_WRITERS = 4


def reading_engine(url: URL, wait: float) -> AsyncEngine:
    """An engine in which each statement is its own transaction: no BEGIN, and no ROLLBACK to wait for."""
    sqlite = url.get_backend_name() == "sqlite"
    engine = _engine(
        url,
        wait,
        size=_SQLITE_READERS if sqlite else _POSTGRES_READERS,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_reset_on_return=None,
    )
    if sqlite:
        _set_pragmas(engine, wait, query_only="ON")
    return engine


def writing_engine(url: URL, wait: float, *, foreign_keys: bool = True) -> AsyncEngine:
    """An engine whose transactions hold the write lock from the start (SQLite).

    Migrations need ``foreign_keys`` off: SQLite changes a table by dropping the old one, which would also delete all
    rows that refer to it.
    """
    if url.get_backend_name() != "sqlite":
        return _engine(url, wait, size=_POSTGRES_WRITERS)
    # One connection: SQLite has only one writer, and the pool's queue is fair, unlike SQLite's polling for the lock.
    engine = _engine(url, wait, size=1)
    # With NORMAL, a power cut may lose acknowledged commits.
    _set_pragmas(engine, wait, synchronous="FULL", foreign_keys="ON" if foreign_keys else "OFF")

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def driver_errors(url: URL) -> tuple[type[Exception], ...]:
    """Errors that the driver itself raises while it connects, which SQLAlchemy does not translate."""
    if url.get_backend_name() != "postgresql":
        return ()
    driver = import_module("asyncpg")
    return driver.PostgresError, driver.InterfaceError


def _engine(url: URL, wait: float, *, size: int, **options: object) -> AsyncEngine:
    # Parameters in the text of an error would put handles and digests into the log.
    options |= {"pool_size": size, "max_overflow": 0, "hide_parameters": True}
    if url.get_backend_name() == "postgresql":
        options |= {"pool_pre_ping": True, "connect_args": {"timeout": wait, "command_timeout": wait}}
    try:
        # A caller waits for a connection for twice the time that one lock may take; then it gets an error.
        return create_async_engine(url, pool_timeout=2 * wait, **options)
    except ModuleNotFoundError as error:
        raise KdispatchError(
            "bad_request", f"PostgreSQL needs the driver {error.name}: pip install 'kdispatch[relay,postgres]'."
        ) from error


def _set_pragmas(engine: AsyncEngine, wait: float, **pragmas: str) -> None:
    @event.listens_for(engine.sync_engine, "do_connect")
    def open_existing(_dialect: object, _entry: object, arguments: list[str], options: dict[str, object]) -> None:
        # If the file was moved away, SQLite would create an empty one, which a restart would take for the database.
        arguments[0] = f"{Path(arguments[0]).as_uri()}?mode=rw"
        options["uri"] = True

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()
