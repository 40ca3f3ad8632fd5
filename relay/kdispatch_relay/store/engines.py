"""Engines for reading and for writing, set up so that no write is lost.

SQLite by default loses concurrent read-modify-writes without an error: Python's driver begins a transaction
only at the first write, after what was read has become old. So the driver's own handling is switched off,
and a writer takes the file's write lock before it reads (``BEGIN IMMEDIATE``).
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

_SQLITE_READERS = 4  # connections, each with a thread of its own; look-ups gain nothing from more
_POSTGRES_READERS = 8
_POSTGRES_WRITERS = 4


def reading_engine(url: URL, wait: float) -> AsyncEngine:
    """An engine whose statements are each a transaction of their own: no BEGIN, no ROLLBACK to wait for."""
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
    """An engine whose transactions hold the write lock from their first moment (SQLite).

    Migrations want ``foreign_keys`` off: SQLite changes a table by dropping the old one, which would take
    all rows along that refer to it.
    """
    if url.get_backend_name() != "sqlite":
        return _engine(url, wait, size=_POSTGRES_WRITERS)
    # One connection: SQLite has one writer anyway, and the pool's queue is fair where its polling for the lock is not.
    engine = _engine(url, wait, size=1)
    # NORMAL may lose acknowledged commits in a power cut.
    _set_pragmas(engine, wait, synchronous="FULL", foreign_keys="ON" if foreign_keys else "OFF")

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def driver_errors(url: URL) -> tuple[type[Exception], ...]:
    """What the driver raises itself while it connects, where SQLAlchemy does not translate."""
    if url.get_backend_name() != "postgresql":
        return ()
    driver = import_module("asyncpg")
    return driver.PostgresError, driver.InterfaceError


def _engine(url: URL, wait: float, *, size: int, **options: object) -> AsyncEngine:
    # A parameter in an error's text would put handles and digests into the log.
    options |= {"pool_size": size, "max_overflow": 0, "hide_parameters": True}
    if url.get_backend_name() == "postgresql":
        options |= {"pool_pre_ping": True, "connect_args": {"timeout": wait, "command_timeout": wait}}
    try:
        # A caller waits its turn for twice the time that one lock may cost; then it is told.
        return create_async_engine(url, pool_timeout=2 * wait, **options)
    except ModuleNotFoundError as error:
        raise KdispatchError(
            "bad_request", f"PostgreSQL needs the driver {error.name}: pip install 'kdispatch[relay,postgres]'."
        ) from error


def _set_pragmas(engine: AsyncEngine, wait: float, **pragmas: str) -> None:
    @event.listens_for(engine.sync_engine, "do_connect")
    def open_existing(_dialect: object, _entry: object, arguments: list[str], options: dict[str, object]) -> None:
        # Where the file was moved away SQLite would make an empty one, which a restart would take for the database.
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
