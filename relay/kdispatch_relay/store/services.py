"""Services: created, changed, rotated and deleted by their owner."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.audit import Audit
from kdispatch_relay.store.changes import Changes
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Admin, Invite, Service, Token
from kdispatch_relay.store.quotas import place_for_service
from kdispatch_relay.store.records import AuditEvent, Identity, NewToken, ServiceRecord

__all__ = ["Services", "id_of", "lock_tokens"]


async def id_of(connection: AsyncConnection, owner: Identity, name: str) -> int | None:
    """The row of a service of ``owner``, locked against others' changes, before any other row."""
    query = select(Service.id).where(Service.owner_id == owner.admin_id, Service.name == name)
    return (await connection.execute(query.with_for_update(key_share=True))).scalar_one_or_none()


async def lock_tokens(connection: AsyncConnection, which: ColumnElement[bool]) -> None:
    """Lock tokens in the order of their ids, as everybody does who changes several."""
    query = select(Token.digest).where(which).order_by(Token.token_id)
    await connection.execute(query.with_for_update(key_share=True))


class Services:
    """Every method may raise ``storage_unavailable``. ``source`` is the address of whoever asked."""

    def __init__(self, database: Database, changes: Changes, audit: Audit) -> None:
        self._database = database
        self._changes = changes
        self._audit = audit

    async def create(
        self, owner: Identity, name: str, token: NewToken, *, access: str, pins: bool, source: str
    ) -> ServiceRecord:
        """Create a service of ``owner`` with its own token; raise ``service_exists`` or ``quota_exceeded``."""
        service = f"{owner.handle}/{name}"
        try:
            async with self._database.write() as connection:
                await place_for_service(connection, owner.admin_id)
                values = {"owner_id": owner.admin_id, "name": name, "access": access, "pins": pins}
                new = await connection.execute(insert(Service).values(values).returning(Service.id))
                await self._add_own(connection, owner, new.scalar_one(), token)
                event = _event(owner, "service.create", service, source, access=access, pins=pins)
                await self._audit.add(connection, owner.admin_id, event)
        except IntegrityError as error:
            raise KdispatchError("service_exists", f"The service {service!r} exists already.") from error
        return ServiceRecord(service, access, pins)

    async def change(self, owner: Identity, name: str, values: Mapping[str, Any], *, source: str) -> bool:
        """Set ``access``, ``pins`` or both; returns whether there is such a service."""
        service = f"{owner.handle}/{name}"
        async with self._changes.taking(service) as taking:
            found = await id_of(taking.connection, owner, name)
            if found is None or not await self._differs(taking.connection, found, values):
                taking.nothing()
                return found is not None
            await taking.connection.execute(update(Service).where(Service.id == found).values(values))
            event = _event(owner, "service.change", service, source, **values)
            await self._audit.add(taking.connection, owner.admin_id, event)
        return True

    async def delete(self, owner: Identity, name: str, *, source: str) -> bool:
        """Delete a service of ``owner`` with its tokens and invitations; returns whether there was one."""
        service = f"{owner.handle}/{name}"
        async with self._changes.taking(service) as taking:
            connection = taking.connection
            found = await id_of(connection, owner, name)
            if found is None:
                taking.nothing()
                return False
            await lock_tokens(connection, Token.service_id == found)
            await connection.execute(delete(Token).where(Token.service_id == found))
            await connection.execute(delete(Invite).where(Invite.service_id == found))
            await connection.execute(delete(Service).where(Service.id == found))
            event = _event(owner, "service.delete", service, source)
            await self._audit.add(connection, owner.admin_id, event)
        return True

    async def rotate(self, owner: Identity, name: str, token: NewToken, *, old_until: int | None, source: str) -> bool:
        """Give a service a new token of its own. The old one ends at ``old_until``, or now.

        Returns whether there is such a service.
        """
        service = f"{owner.handle}/{name}"
        async with self._changes.taking(service) as taking:
            connection = taking.connection
            found = await id_of(connection, owner, name)
            if found is None:
                taking.nothing()
                return False
            await self._end_own(connection, found, old_until)
            await self._add_own(connection, owner, found, token)
            detail: dict[str, Any] = {"token": token.id} | ({"old_until": old_until} if old_until else {})
            event = _event(owner, "service.rotate", service, source, **detail)
            await self._audit.add(connection, owner.admin_id, event)
        return True

    async def of(self, owner: Identity) -> list[ServiceRecord]:
        """All services of one admin, by name."""
        query = (
            select(Admin.handle, Service.name, Service.access, Service.pins)
            .join(Admin, Admin.id == Service.owner_id)
            .where(Admin.id == owner.admin_id)
            .order_by(Service.name)
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [ServiceRecord(f"{row.handle}/{row.name}", row.access, row.pins) for row in rows]

    @staticmethod
    async def _differs(connection: AsyncConnection, service_id: int, values: Mapping[str, Any]) -> bool:
        """Whether the service has anything else than ``values``."""
        query = select(*(getattr(Service, name) for name in values)).where(Service.id == service_id)
        return tuple((await connection.execute(query)).one()) != tuple(values.values())

    async def _end_own(self, connection: AsyncConnection, service_id: int, until: int | None) -> None:
        now = int(time.time())
        which = (Token.service_id == service_id) & Token.own.is_(True) & Token.revoked_at.is_(None)
        await lock_tokens(connection, which)
        own = update(Token).where(which)
        if until is None:
            await connection.execute(own.values(revoked_at=now))
        else:  # one that ends sooner still does
            await connection.execute(
                own.where((Token.expires_at.is_(None)) | (Token.expires_at > until)).values(expires_at=until)
            )

    async def _add_own(self, connection: AsyncConnection, owner: Identity, service_id: int, token: NewToken) -> None:
        values = {"digest": token.digest, "token_id": token.id, "kind": "svc", "name": token.name, "own": True}
        await connection.execute(insert(Token).values(admin_id=owner.admin_id, service_id=service_id, **values))


def _event(owner: Identity, action: str, service: str, source: str, **detail: Any) -> AuditEvent:
    return AuditEvent(actor=owner.actor, action=action, subject=service, source=source, detail=detail)
