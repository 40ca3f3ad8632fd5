"""The audit: who did what to what, from where, when.

A change's row is written in the change's own transaction, and never merged. Events at the switch, hosting and
connecting, are noted in memory, merged (:mod:`kdispatch_relay.store.merging`) and written about once a second, so that
no stream waits for the database. Of each action, an account keeps its newest rows.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_relay.store.database import Database
from kdispatch_relay.store.merging import ROUTINE, Merger, Row
from kdispatch_relay.store.models import Admin, AuditRow
from kdispatch_relay.store.records import AuditRecord
from kdispatch_relay.store.tidying import BATCH, drop_where

__all__ = ["OPERATOR", "Audit"]

OPERATOR: Final = "operator"  # the actor of changes made on the relay's machine

_WAITING: Final = 40_000  # unwritten rows, as many as an hour may have; above this, the oldest are dropped and counted
#: Whether an action is merged, how many rows of one action an account keeps, and how many all accounts together.
_KEPT: Final = ((True, 5_000, 1_000_000), (False, 10_000, 2_000_000))
_CHANGING: Final = ("actor", "source", "detail", "times", "last_at")
_log = logging.getLogger("kdispatch.relay")


class Audit:
    """The table, and the notes that are not written to it yet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._merger = Merger()
        self._waiting: dict[Row, None] = {}  # rows that the table lacks, or has in an older state
        self._lost = 0

    def note(self, handle: str, event: AuditRecord) -> None:
        """Note an event at the switch, in the account of ``handle``; its ``at`` must be set."""
        merged = event.action in ROUTINE or event.actor.startswith("hst ")
        row = self._merger.row(handle, event) if merged else Row.of(handle, event)
        if row is None:
            self._lost += 1
            return
        self._waiting[row] = None
        if len(self._waiting) > _WAITING:
            del self._waiting[next(iter(self._waiting))]
            self._lost += 1

    async def write_notes(self) -> None:
        """Store the notes; if that fails, they are kept."""
        left = deque(self._waiting)
        while left:
            batch = {row: row.count for row in (left.popleft() for _ in range(min(BATCH, len(left))))}
            async with self._database.write() as connection:
                ids = await _store(connection, list(batch))
            for row, id_ in ids:  # only after the commit: an id that was rolled back may be given to another row
                row.id = id_
            for row, count in batch.items():
                if row.count == count:
                    self._waiting.pop(row, None)
        if self._lost:
            _log.warning("The audit lacks %d entries of hosts and clients: too many came at once.", self._lost)
            self._lost = 0

    async def add(self, connection: AsyncConnection, admin_id: int | None, event: AuditRecord) -> None:
        """Store an event in the caller's transaction, now."""
        values = {"at": event.at or int(time.time()), "admin_id": admin_id, "actor": event.actor}
        text = {"action": event.action, "subject": event.subject, "source": event.source[:64]}
        await connection.execute(insert(AuditRow).values(**values, **text, detail=_written(event.detail)))

    async def read(
        self, handle: str | None, *, service: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[AuditRecord]:
        """The newest events of one account, or of all, with ids below ``before``; ``service`` is ``handle/name``."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if handle is not None:
            query = query.where(AuditRow.admin_id == select(Admin.id).where(Admin.handle == handle).scalar_subquery())
        if service is not None:
            query = query.where(AuditRow.subject == service)
        if before is not None:
            query = query.where(AuditRow.id < before)
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [
                AuditRecord(
                    id=row.id,
                    at=row.at,
                    actor=row.actor,
                    action=row.action,
                    subject=row.subject,
                    source=row.source,
                    detail=json.loads(row.detail or "{}"),
                    count=row.times,
                    last=row.last_at or row.at,
                )
                for row in rows
            ]

    async def forget_before(self, moment: int) -> None:
        """Drop what is older than ``moment``, in unix seconds."""
        await drop_where(self._database, AuditRow.id, AuditRow.at < moment)

    async def trim(self) -> None:
        """Drop the oldest rows of each account and action that has more than it keeps.

        If all accounts together have too many, each keeps half as many, and half again, until they fit: accounts with
        the most rows lose first.
        """
        for merged, of_each, of_all in _KEPT:
            which = AuditRow.action.in_(ROUTINE) if merged else AuditRow.action.not_in(ROUTINE)
            kept = of_each
            await self._keep(which, kept)
            while kept > 1 and await self._count(which) > of_all:
                kept //= 2
                await self._keep(which, kept)

    async def _keep(self, which: ColumnElement[bool], most: int) -> None:
        of = (AuditRow.admin_id, AuditRow.action)
        async with self._database.read() as connection:
            groups = (
                await connection.execute(select(*of).where(which).group_by(*of).having(func.count() > most))
            ).all()
        for admin_id, action in groups:
            group = AuditRow.admin_id.is_not_distinct_from(admin_id) & (AuditRow.action == action)
            oldest = select(AuditRow.id).where(group).order_by(AuditRow.id.desc()).offset(most).limit(1)
            async with self._database.read() as connection:
                last = (await connection.execute(oldest)).scalar_one_or_none()
            if last is not None:
                await drop_where(self._database, AuditRow.id, group & (AuditRow.id <= last))

    async def _count(self, which: ColumnElement[bool]) -> int:
        async with self._database.read() as connection:
            return (await connection.execute(select(func.count()).select_from(AuditRow).where(which))).scalar_one()


async def _store(connection: AsyncConnection, rows: list[Row]) -> list[tuple[Row, int]]:
    """Add the rows that are new, and update the others; returns the ids of the new ones."""
    handles = {row.handle for row in rows if not row.id}
    found = await connection.execute(select(Admin.handle, Admin.id).where(Admin.handle.in_(handles)))
    admins: dict[str, int] = dict(found.all())
    new = [row for row in rows if not row.id and row.handle in admins]
    ids: Sequence[int] = ()
    if new:
        adding = insert(AuditRow).returning(AuditRow.id, sort_by_parameter_order=True)
        values = [
            {"at": row.at, "admin_id": admins[row.handle], "action": row.action, "subject": row.subject, **_now(row)}
            for row in new
        ]
        ids = (await connection.execute(adding, values)).scalars().all()
    again = [{"row": row.id, **{f"now_{name}": value for name, value in _now(row).items()}} for row in rows if row.id]
    if again:
        now: dict[str, Any] = {name: bindparam(f"now_{name}") for name in _CHANGING}
        await connection.execute(update(AuditRow).where(AuditRow.id == bindparam("row")).values(now), again)
    return list(zip(new, ids, strict=True))


def _now(row: Row) -> dict[str, Any]:
    """The columns that change when an event is merged into a row."""
    last = row.last if row.count > 1 else None
    values = (row.actor, row.source[:64], _written(row.detail), row.count, last)
    return dict(zip(_CHANGING, values, strict=True))


def _written(detail: Any) -> str:
    return json.dumps(dict(detail)) if detail else ""
