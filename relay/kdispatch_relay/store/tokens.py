"""Tokens beside those that come with a handle or a service: named, revocable, and with an optional expiry."""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.audit import Audit
from kdispatch_relay.store.changes import Changes
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Admin, Invite, Service, Token
from kdispatch_relay.store.quotas import place_for_token
from kdispatch_relay.store.records import AuditRecord, NewToken, TokenIdentity, TokenRecord
from kdispatch_relay.store.services import id_of, service_of, trim_ended_tokens

__all__ = ["KEPT", "Tokens"]

KEPT: Final = 30 * 24 * 3600  # seconds after its end for which a token is listed, and answered with `revoked`

_TOKENS: Final = (
    select(
        Token.token_id,
        Token.kind,
        Token.name,
        Service.name,
        Token.created_at,
        Token.expires_at,
        Token.last_used_at,
        Token.revoked_at,
        Invite.token_id,
    )
    .outerjoin(Service, Service.id == Token.service_id)
    .outerjoin(Invite, Invite.id == Token.invite_id)
)


class Tokens:
    """The stored tokens. Every method may raise ``storage_unavailable``. ``source`` is the caller's address."""

    def __init__(self, database: Database, changes: Changes, audit: Audit) -> None:
        self._database = database
        self._changes = changes
        self._audit = audit

    async def create(
        self, owner: TokenIdentity, token: NewToken, *, kind: str, name: str | None, source: str
    ) -> TokenRecord | None:
        """Store a token of ``kind``, for ``owner``'s service ``name`` if given; ``None`` if there is no such service.

        Raises ``quota_exceeded``.
        """
        service = None if name is None else f"{owner.handle}/{name}"
        now = int(time.time())
        async with self._database.write() as connection:
            service_id = None if name is None else await id_of(connection, owner, name)
            if name is not None and service_id is None:
                return None
            await trim_ended_tokens(connection, owner.admin_id)
            await place_for_token(connection, owner.admin_id)
            values = {"digest": token.digest, "token_id": token.id, "kind": kind, "name": token.name, "created_at": now}
            await connection.execute(
                insert(Token).values(admin_id=owner.admin_id, service_id=service_id, expires_at=token.expires, **values)
            )
            detail = {"token": token.id, "kind": kind, "name": token.name}
            event = AuditRecord(
                actor=owner.actor,
                action="token.create",
                subject=service or owner.handle,
                source=source,
                detail=detail | ({"expires": token.expires} if token.expires else {}),
            )
            await self._audit.add(connection, owner.admin_id, event)
        return TokenRecord(
            id=token.id,
            kind=kind,
            name=token.name,
            service=service,
            created=now,
            expires=token.expires,
            last_used=None,
            revoked=False,
            invite=None,
        )

    async def of(
        self,
        owner: TokenIdentity,
        name: str | None = None,
        *,
        after: tuple[int, str] | None = None,
        limit: int | None = None,
    ) -> list[TokenRecord]:
        """The tokens of one admin, or of its service ``name``, the newest first; ended ones for 30 days.

        ``after`` is the creation time and id of the token after which the list begins.
        """
        place = (Token.created_at, Token.token_id)
        query = _TOKENS.where(or_(Token.ended_at.is_(None), Token.ended_at > int(time.time()) - KEPT))
        if name is None:
            query = query.where(Token.admin_id == owner.admin_id)
        else:
            query = query.where(Token.service_id == service_of(owner, name))
        if after is not None:
            query = query.where(tuple_(*place) < after)
        query = query.order_by(*(column.desc() for column in place)).limit(limit)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            TokenRecord(
                id=token_id,
                kind=kind,
                name=called,
                service=f"{owner.handle}/{service}" if service else None,
                created=created,
                expires=expires,
                last_used=used,
                revoked=revoked is not None,
                invite=invite,
            )
            for token_id, kind, called, service, created, expires, used, revoked, invite in rows
        ]

    async def revoke(self, owner: TokenIdentity, token_id: str, *, source: str) -> bool:
        """Revoke a token of ``owner``; returns whether there was such a valid one. Raises ``last_token``."""
        async with self._changes.taking(owner.handle) as taking:
            connection, now = taking.connection, int(time.time())
            query = (
                select(Token.digest, Token.kind, Token.expires_at, Token.name, Service.name)
                .outerjoin(Service, Service.id == Token.service_id)
                .where(Token.admin_id == owner.admin_id, Token.token_id == token_id, Token.revoked_at.is_(None))
                .with_for_update(of=Token)
            )
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                taking.nothing()
                return False
            digest, kind, expires, name, service = row
            if service is not None:  # nothing at other services rests on it
                taking.scope = f"{owner.handle}/{service}"
            if kind == "adm" and expires is None:
                await self._check_another(connection, owner, digest)
            await connection.execute(update(Token).where(Token.digest == digest).values(revoked_at=now))
            event = AuditRecord(
                actor=owner.actor,
                action="token.revoke",
                subject=f"{owner.handle}/{service}" if service else owner.handle,
                source=source,
                detail={"token": token_id, "kind": kind, "name": name},
            )
            await self._audit.add(connection, owner.admin_id, event)
        return True

    async def _check_another(self, connection: AsyncConnection, owner: TokenIdentity, digest: bytes) -> None:
        # The lock: if two admin tokens revoke each other at once, one must remain.
        await connection.execute(select(Admin.id).where(Admin.id == owner.admin_id).with_for_update(key_share=True))
        others = select(func.count()).where(
            Token.admin_id == owner.admin_id,
            Token.kind == "adm",
            Token.digest != digest,
            Token.revoked_at.is_(None),
            Token.expires_at.is_(None),
        )
        if not (await connection.execute(others)).scalar_one():
            raise KdispatchError("last_token")
