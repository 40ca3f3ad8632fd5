"""Services: created, changed, rotated and deleted by their owner."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, ScalarSelect, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.audit import Audit
from kdispatch_relay.store.changes import Changes
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Admin, Invite, Service, Token
from kdispatch_relay.store.quotas import place_for_service
from kdispatch_relay.store.records import AuditRecord, NewToken, ServiceRecord, TokenIdentity
from kdispatch_relay.store.tidying import drop, drop_where

__all__ = ["ENDED_TOKENS", "OWN_TOKENS", "Services", "id_of", "lock_tokens", "service_of", "trim_ended_tokens"]

ENDED_TOKENS: Final = 1_000  #: ended tokens kept for an account, as many as it may have valid; the latest stay
OWN_TOKENS: Final = 16  #: valid tokens of a service's own at a time: the newest, and those that rotations let overlap


async def id_of(connection: AsyncConnection, owner: TokenIdentity, name: str) -> int | None:
    """The row id of ``owner``'s service, locked against changes by others. Lock it before any other row."""
    query = select(Service.id).where(Service.owner_id == owner.admin_id, Service.name == name)
    return (await connection.execute(query.with_for_update(key_share=True))).scalar_one_or_none()


async def lock_tokens(connection: AsyncConnection, which: ColumnElement[bool]) -> None:
    """Lock tokens in the order of their ids, as all code does that changes several."""
    query = select(Token.digest).where(which).order_by(Token.token_id)
    await connection.execute(query.with_for_update(key_share=True))


def service_of(owner: TokenIdentity, name: str) -> ScalarSelect[int]:
    """The row id of ``owner``'s service, as a subquery."""
    query = select(Service.id).where(Service.owner_id == owner.admin_id, Service.name == name)
    return query.correlate(None).scalar_subquery()


async def trim_ended_tokens(connection: AsyncConnection, admin_id: int) -> None:
    """Drop an account's tokens that ended first, if it has more ended ones than are kept. Call it before adding one."""
    ended = (Token.admin_id == admin_id) & (Token.ended_at <= int(time.time()))
    rows = select(Token.digest).where(ended).order_by(Token.ended_at.desc()).offset(ENDED_TOKENS)
    await drop(connection, Token.digest, rows)


class Services:
    """The stored services. Every method may raise ``storage_unavailable``. ``source`` is the caller's address."""

    def __init__(self, database: Database, changes: Changes, audit: Audit) -> None:
        self._database = database
        self._changes = changes
        self._audit = audit

    async def create(
        self, owner: TokenIdentity, name: str, token: NewToken, *, access: str, pins: bool, source: str
    ) -> ServiceRecord:
        """Create a service of ``owner`` with its own token; raises ``service_exists`` or ``quota_exceeded``."""
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

    async def change(self, owner: TokenIdentity, name: str, values: Mapping[str, Any], *, source: str) -> bool:
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

    async def delete(self, owner: TokenIdentity, name: str, *, source: str) -> bool:
        """Delete a service of ``owner`` with its tokens and invitations; returns whether there was one."""
        service = f"{owner.handle}/{name}"
        # Delete ended rows first, in batches: the transaction that deletes the service then has only valid ones to
        # delete.
        gone, now = service_of(owner, name), int(time.time())
        await drop_where(self._database, Token.digest, (Token.service_id == gone) & (Token.ended_at <= now))
        await drop_where(self._database, Invite.id, (Invite.service_id == gone) & (Invite.ended_at <= now))
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

    async def rotate(
        self, owner: TokenIdentity, name: str, token: NewToken, *, old_until: int | None, source: str
    ) -> bool:
        """Give a service a new token of its own. The old one ends at ``old_until``, or now.

        Returns whether there is such a service. Raises ``quota_exceeded``.
        """
        service = f"{owner.handle}/{name}"
        async with self._changes.taking(service) as taking:
            connection = taking.connection
            found = await id_of(connection, owner, name)
            if found is None:
                taking.nothing()
                return False
            await self._end_own(connection, found, old_until)
            await trim_ended_tokens(connection, owner.admin_id)
            await self._add_own(connection, owner, found, token)
            detail: dict[str, Any] = {"token": token.id} | ({"old_until": old_until} if old_until else {})
            event = _event(owner, "service.rotate", service, source, **detail)
            await self._audit.add(connection, owner.admin_id, event)
        return True

    async def of(self, owner: TokenIdentity, *, after: str = "", limit: int | None = None) -> list[ServiceRecord]:
        """The services of one admin sorted by name: ``limit`` of those after ``after``."""
        query = (
            select(Admin.handle, Service.name, Service.access, Service.pins)
            .join(Admin, Admin.id == Service.owner_id)
            .where(Service.owner_id == owner.admin_id, Service.name > after)
            .order_by(Service.name)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [ServiceRecord(f"{row.handle}/{row.name}", row.access, row.pins) for row in rows]

    @staticmethod
    async def _differs(connection: AsyncConnection, service_id: int, values: Mapping[str, Any]) -> bool:
        """Whether any value of the service differs from ``values``."""
        query = select(*(getattr(Service, name) for name in values)).where(Service.id == service_id)
        return tuple((await connection.execute(query)).one()) != tuple(values.values())

    async def _end_own(self, connection: AsyncConnection, service_id: int, until: int | None) -> None:
        now = int(time.time())
        which = (Token.service_id == service_id) & Token.own.is_(True) & Token.revoked_at.is_(None)
        await lock_tokens(connection, which)
        own = update(Token).where(which)
        if until is None:
            await connection.execute(own.values(revoked_at=now))
        else:  # a token that ends sooner still does
            held = or_(Token.ended_at.is_(None), Token.ended_at > now)
            count = select(func.count()).select_from(Token).where(which, held)
            if (await connection.execute(count)).scalar_one() >= OWN_TOKENS:
                text = f"The service has {OWN_TOKENS} valid tokens of its own; rotate without an overlap."
                raise KdispatchError("quota_exceeded", text)
            await connection.execute(
                own.where((Token.expires_at.is_(None)) | (Token.expires_at > until)).values(expires_at=until)
            )

    async def _add_own(
        self, connection: AsyncConnection, owner: TokenIdentity, service_id: int, token: NewToken
    ) -> None:
        values = {"digest": token.digest, "token_id": token.id, "kind": "svc", "name": token.name, "own": True}
        await connection.execute(insert(Token).values(admin_id=owner.admin_id, service_id=service_id, **values))


def _event(owner: TokenIdentity, action: str, service: str, source: str, **detail: Any) -> AuditRecord:
    return AuditRecord(actor=owner.actor, action=action, subject=service, source=source, detail=detail)
