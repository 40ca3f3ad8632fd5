"""Who did what to what, from where, when: rows that are added and, when they are old, dropped; never changed.

A change's row is written in the change's own transaction. What happens at the switch, hosting and connecting, is noted
in memory and written about once a second, so that no stream waits for the database.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from typing import Any, Final

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Admin, AuditRow
from kdispatch_relay.store.records import AuditEvent

__all__ = ["OPERATOR", "Audit"]

OPERATOR: Final = "operator"  # the actor of what is done on the relay's machine

_WAITING: Final = 10_000  # notes; then the oldest go, and that is told
_AT_ONCE: Final = 500
_log = logging.getLogger("kdispatch.relay")


class Audit:
    """The table, and the notes that are not in it yet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._notes: deque[tuple[str, AuditEvent]] = deque()
        self._lost = 0

    def note(self, handle: str, event: AuditEvent) -> None:
        """Something that happened at the switch, in the account of ``handle``; ``at`` is set."""
        if len(self._notes) >= _WAITING:
            self._notes.popleft()
            self._lost += 1
        self._notes.append((handle, event))

    async def write_notes(self) -> None:
        """Store what was noted; it stays noted where that fails."""
        while self._notes:
            batch = [self._notes.popleft() for _ in range(min(_AT_ONCE, len(self._notes)))]
            try:
                async with self._database.write() as connection:
                    handles = {handle for handle, _ in batch}
                    rows = await connection.execute(select(Admin.handle, Admin.id).where(Admin.handle.in_(handles)))
                    ids = dict(rows.all())
                    values = [_values(ids[handle], event) for handle, event in batch if handle in ids]
                    if values:
                        await connection.execute(insert(AuditRow), values)
            except KdispatchError:
                self._notes.extendleft(reversed(batch))
                raise
        if self._lost:
            _log.warning("the audit lacks %d hosts and clients that came while the database was away", self._lost)
            self._lost = 0

    async def add(self, connection: AsyncConnection, admin_id: int | None, event: AuditEvent) -> None:
        """Store an event in the caller's transaction, now."""
        await connection.execute(insert(AuditRow).values(_values(admin_id, event)))

    async def read(
        self, handle: str | None, *, service: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[AuditEvent]:
        """The newest events of one account, or of all, with ids below ``before``; ``service`` is ``handle/name``."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if handle is not None:
            query = query.join(Admin, Admin.id == AuditRow.admin_id).where(Admin.handle == handle)
        if service is not None:
            query = query.where(AuditRow.subject == service)
        if before is not None:
            query = query.where(AuditRow.id < before)
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [
                AuditEvent(
                    id=row.id,
                    at=row.at,
                    actor=row.actor,
                    action=row.action,
                    subject=row.subject,
                    source=row.source,
                    detail=json.loads(row.detail or "{}"),
                )
                for row in rows
            ]

    async def forget_before(self, moment: int) -> None:
        """Drop what is older than ``moment``, unix seconds."""
        async with self._database.write() as connection:
            await connection.execute(delete(AuditRow).where(AuditRow.at < moment))


def _values(admin_id: int | None, event: AuditEvent) -> dict[str, Any]:
    return {
        "at": event.at or int(time.time()),
        "admin_id": admin_id,
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "source": event.source[:64],
        "detail": json.dumps(dict(event.detail)) if event.detail else "",
    }
