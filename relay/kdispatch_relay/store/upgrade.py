"""Brings the tables up to date. Several relays may start at once on one database."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, column, func, inspect, select, table

from kdispatch_relay.store.failures import StorageError

__all__ = ["upgrade_tables"]

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6B64_6973  # "kdis": this program's key among PostgreSQL's advisory locks


def upgrade_tables(connection: Connection, *, only_look: bool = False) -> tuple[str | None, str | None]:
    """Run the missing migrations in the caller's transaction; returns the revisions before and after.

    With ``only_look`` it runs nothing, and returns the newest revision as the second. The transaction is the lock:
    SQLite's was begun with the write lock, PostgreSQL's takes an advisory lock here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    before, head = _revision(connection), _head()
    if before != head and not only_look:
        _run_migrations(connection)
    return before, head


def _head() -> str:
    """The newest revision; a test compares it with alembic's own answer."""
    return max(path.name[1:].partition("_")[0] for path in (_MIGRATIONS / "versions").glob("v*.py"))


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar()


def _run_migrations(connection: Connection) -> None:
    # Imported here: alembic takes 10 MB and 140 ms, and most starts have nothing to migrate.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        text = "The database was written by another version of kdispatch, and this one does not know its tables."
        hint = "Start the version that wrote it, or a newer one; or restore an earlier backup."
        raise StorageError(text, hint) from error
