"""Bring the tables up to date. Several relays may start at once on one database."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, func, select

from kdispatch_protocol.errors import KdispatchError

__all__ = ["upgrade_tables"]

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6B64_6973  # "kdis": this program's key among PostgreSQL's advisory locks


def upgrade_tables(connection: Connection) -> None:
    """Run what is missing of the migrations, in the caller's transaction.

    The transaction is the lock: SQLite's was begun with the write lock, PostgreSQL's takes an advisory lock here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    head = ScriptDirectory.from_config(config).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() == head:
        return
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        text = "The database was written by another version of kdispatch, and this one does not know its tables."
        raise KdispatchError("storage_unavailable", text) from error
