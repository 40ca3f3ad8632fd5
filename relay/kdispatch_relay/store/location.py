"""The location of the database: from the operator's setting to a URL, and the file's permissions."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from pathlib import Path

from platformdirs import user_data_path
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.failures import StorageError
from kdispatch_relay.store.wal import is_damaged

__all__ = ["check_there", "database_url", "prepare_file"]

_log = logging.getLogger(__name__)

_FORMS = "Give a file's path, sqlite:///FILE or postgresql://USER@HOST/NAME."
_PRIVATE_FILE = 0o600
_PRIVATE_FOLDER = 0o700


def database_url(text: str) -> URL:
    """Turn a path or a URL into the URL of an asyncio driver; raise ``bad_request`` for anything else.

    An empty ``text`` means ``relay.db`` in the platform's data directory of this user.
    """
    if not text:
        try:
            return _file_url(user_data_path("kdispatch", appauthor=False) / "relay.db")
        except RuntimeError as error:  # neither HOME nor the system's list of users has one
            text = "This user has no home directory for the database: give its path (--database), or set HOME."
            raise KdispatchError("bad_request", text) from error
    if "://" not in text and text != ":memory:":
        try:
            return _file_url(Path(text).expanduser())
        except OSError as error:
            why = f"The database's path {text!r} leads nowhere: the current folder is gone."
            raise KdispatchError("bad_request", why) from error
        except RuntimeError as error:
            why = f"The database's path {text!r} leads nowhere: the system knows no such user, or no home."
            raise KdispatchError("bad_request", why) from error
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    # The text is not repeated in errors: it may hold a password.
    if url is not None and url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+asyncpg")
    if url is not None and url.get_backend_name() != "sqlite":
        raise KdispatchError("bad_request", f"Databases of type {url.get_backend_name()!r} are not supported. {_FORMS}")
    if url is None or not url.database or url.database == ":memory:" or url.query:
        # In memory, every admin would be lost at a restart, and each connection of a pool would have its own database.
        raise KdispatchError("bad_request", f"The database must be a file or a server. {_FORMS}")
    return _file_url(Path(url.database))


def check_there(text: str) -> None:
    """Raise ``storage_unavailable`` if a file is meant and does not exist, so that a reader does not create it."""
    url = database_url(text)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        text = f"There is no database {url.database}."
        raise StorageError(text, "Give the path that the relay uses as --database, and run this as the relay's user.")


def prepare_file(path: Path, wait: float) -> None:
    """Make ``path`` a SQLite file in WAL mode that only this user can read; blocks for up to ``wait`` seconds.

    A missing folder is created for this user alone; an existing one stays as it is.
    """
    # One by one: for parents, mkdir uses the umask's mode, which may let everyone write.
    for missing in [one for one in path.parents if not one.exists()][::-1]:
        missing.mkdir(_PRIVATE_FOLDER, exist_ok=True)
    # SQLite gives its -wal and -shm files the mode of the database file, so that is set first.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE))
    if path.stat().st_mode & 0o077:
        path.chmod(_PRIVATE_FILE)
    log = path.with_name(f"{path.name}-wal")
    if is_damaged(log):
        _log.warning(
            "The write-ahead log %s is damaged, so SQLite ignores it: the last changes of the database may be lost. "
            "Compare it with a backup; see 'The database' in docs/operations.md.",
            log,
        )
    _switch_to_wal(path, wait)


def _switch_to_wal(path: Path, wait: float) -> None:
    # The switch needs the file for itself for a moment, and SQLite's busy_timeout does not cover it: when two relays
    # start together, one gets "database is locked" at once. After the switch, the file stays in this mode.
    deadline = time.monotonic() + wait
    while True:
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _file_url(path: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(path.absolute()))
