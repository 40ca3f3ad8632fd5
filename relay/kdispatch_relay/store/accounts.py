"""Admins: they sign up, and the relay's operator lists and suspends them, and sets their quotas."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.audit import OPERATOR, Audit
from kdispatch_relay.store.changes import Changes, Taking
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.invites import spend
from kdispatch_relay.store.models import Admin, Service, Token
from kdispatch_relay.store.quotas import COLUMNS, counted_tokens, quotas_of
from kdispatch_relay.store.records import QUOTAS, AdminRecord, AuditRecord, InviteRecord, NewToken

__all__ = ["Accounts"]

_SERVICES: Final = (
    select(func.count()).select_from(Service).where(Service.owner_id == Admin.id).correlate(Admin).scalar_subquery()
)


class Accounts:
    """The stored accounts. Every method may raise ``storage_unavailable``."""

    def __init__(self, database: Database, changes: Changes, audit: Audit) -> None:
        self._database = database
        self._changes = changes
        self._audit = audit

    async def create(self, handle: str, token: NewToken, *, source: str, code: InviteRecord | None = None) -> None:
        """Create an admin with its first token, spending one use of ``code``; ``handle_taken``, ``invite_spent``.

        The unique constraint decides, not an earlier look-up: if many do this at once, exactly one wins.
        """
        try:
            async with self._database.write() as connection:
                if code is not None:
                    await spend(connection, code)
                new = (await connection.execute(insert(Admin).values(handle=handle).returning(Admin.id))).scalar_one()
                values = {"digest": token.digest, "token_id": token.id, "kind": "adm", "name": token.name}
                await connection.execute(insert(Token).values(admin_id=new, expires_at=token.expires, **values))
                detail = {"code": code.id} if code is not None else {}
                event = AuditRecord(actor="anybody", action="sign_up", subject=handle, source=source, detail=detail)
                await self._audit.add(connection, new, event)
        except IntegrityError as error:
            raise KdispatchError("handle_taken", f"The handle {handle!r} is taken.") from error

    async def list(self, handle: str | None = None, *, after: str = "", limit: int | None = None) -> list[AdminRecord]:
        """The admins sorted by handle: ``limit`` of those after ``after``, or only the one with this handle."""
        tokens = select(func.count()).select_from(Token).where(Token.admin_id == Admin.id, counted_tokens())
        query = (
            select(
                Admin.handle,
                Admin.created_at,
                Admin.suspended_at,
                Admin.suspended_for,
                _SERVICES,
                tokens.correlate(Admin).scalar_subquery(),
                *COLUMNS,
            )
            .where(Admin.handle > after)
            .order_by(Admin.handle)
            .limit(limit)
        )
        if handle is not None:
            query = query.where(Admin.handle == handle)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            AdminRecord(
                handle=name,
                created=created,
                suspended=suspended,
                suspended_for=why,
                services=services,
                tokens=of_admin,
                quotas=quotas_of(*own),
                own=tuple(quota for quota, value in zip(QUOTAS, own, strict=True) if value is not None),
            )
            for name, created, suspended, why, services, of_admin, *own in rows
        ]

    async def suspend(self, handle: str, reason: str | None = None) -> bool:
        """Disable everything of an admin; returns whether there is one with this handle."""
        detail = {"reason": reason} if reason else {}
        async with self._changes.taking(handle) as taking:
            since = await self._find(taking.connection, handle, Admin.suspended_at)
            if since is None or since[0] is None:
                values = {"suspended_at": int(time.time()), "suspended_for": reason}
            else:  # nothing runs any more; only the reason may change
                taking.nothing()
                values = {"suspended_for": reason}
            return await self._update(taking, handle, values, "admin.suspend", detail)

    async def resume(self, handle: str) -> bool:
        """Undo :meth:`suspend`; returns whether there is an admin with this handle."""
        async with self._changes.taking(handle) as taking:
            return await self._update(taking, handle, {"suspended_at": None, "suspended_for": None}, "admin.resume", {})

    async def set_quotas(self, handle: str, quotas: Mapping[str, int | None]) -> bool:
        """Set the quotas that are named; ``None`` means the relay's default. What exists already stays."""
        values = {f"max_{name}": value for name, value in quotas.items()}
        async with self._changes.taking(handle) as taking:
            return await self._update(taking, handle, values, "admin.quota", quotas)

    async def _update(
        self,
        taking: Taking,
        handle: str,
        values: Mapping[str, int | str | None],
        action: str,
        detail: Mapping[str, object],
    ) -> bool:
        """Set the values that differ; returns whether there is an admin with this handle."""
        connection = taking.connection
        before = await self._find(connection, handle, *(getattr(Admin, name) for name in values))
        if before is None or tuple(before) == tuple(values.values()):
            taking.nothing()
            return before is not None
        query = update(Admin).where(Admin.handle == handle).values(values).returning(Admin.id)
        found = (await connection.execute(query)).scalar_one()
        event = AuditRecord(actor=OPERATOR, action=action, subject=handle, source="", detail=detail)
        await self._audit.add(connection, found, event)
        return True

    @staticmethod
    async def _find(connection: AsyncConnection, handle: str, *columns: Any) -> Row[Any] | None:
        query = select(*columns).where(Admin.handle == handle).with_for_update(key_share=True)
        return (await connection.execute(query)).one_or_none()
