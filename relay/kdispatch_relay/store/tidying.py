"""Dropping many rows: a batch in each transaction, so that no other writer waits for longer than one batch takes."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from kdispatch_relay.store.database import Database

__all__ = ["BATCH", "drop", "drop_where"]

BATCH: Final = 500  #: rows in a transaction: SQLite drops them, with their indexes, in about 10 ms


async def drop(connection: AsyncConnection, key: InstrumentedAttribute[Any], rows: Select[Any]) -> int:
    """Drop the rows whose ``key`` is among ``rows``, at most a batch; returns how many there were.

    Rows that another transaction holds are left for the next time: waiting for them could become a circle.
    """
    chosen = rows.correlate(None).limit(BATCH).with_for_update(skip_locked=True, of=key.class_)
    return (await connection.execute(delete(key.class_).where(key.in_(chosen)))).rowcount


async def drop_where(database: Database, key: InstrumentedAttribute[Any], which: ColumnElement[bool]) -> None:
    """Drop every row for which ``which`` holds, in transactions of a batch each; ``key`` is the table's primary key."""
    while True:
        async with database.write() as connection:
            dropped = await drop(connection, key, select(key).where(which))
        if dropped < BATCH:
            return
