"""Deletes many rows in batches, one transaction each, so that other writers wait for one batch at most."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from kdispatch_relay.store.database import Database

__all__ = ["BATCH", "drop", "drop_where"]

BATCH: Final = 500  #: rows in a transaction: SQLite deletes them, with their indexes, in about 10 ms


async def drop(connection: AsyncConnection, key: InstrumentedAttribute[Any], rows: Select[Any]) -> int:
    """Delete the rows whose ``key`` is among ``rows``, at most a batch; returns how many were deleted.

    Rows that another transaction has locked are left for the next time: waiting for them could deadlock.
    """
    chosen = rows.correlate(None).limit(BATCH).with_for_update(skip_locked=True, of=key.class_)
    return (await connection.execute(delete(key.class_).where(key.in_(chosen)))).rowcount


async def drop_where(database: Database, key: InstrumentedAttribute[Any], which: ColumnElement[bool]) -> None:
    """Delete every row for which ``which`` holds, one batch a transaction; ``key`` is the table's primary key."""
    while True:
        async with database.write() as connection:
            dropped = await drop(connection, key, select(key).where(which))
        if dropped < BATCH:
            return
