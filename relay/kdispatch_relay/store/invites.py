"""Invitations: codes that users exchange for a token of their own, a limited number of times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.audit import OPERATOR, Audit
from kdispatch_relay.store.changes import Changes
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Admin, Invite, Service, Token
from kdispatch_relay.store.quotas import place_for_invite, place_for_token
from kdispatch_relay.store.records import AuditRecord, InviteRecord, NewToken, TokenIdentity
from kdispatch_relay.store.services import id_of, lock_tokens, service_of, trim_ended_tokens
from kdispatch_relay.store.tidying import drop
from kdispatch_relay.store.tokens import KEPT

__all__ = ["ENDED_INVITES", "KINDS", "Invites", "spend"]

#: The kind of token that an invitation gives, by its purpose.
KINDS: Final = {"host": "svc", "connect": "cli"}

ENDED_INVITES: Final = 200  #: ended invitations kept for a service, beside those that have valid tokens
_PLACE: Final = (Invite.created_at, Invite.token_id)  # the sort key of lists

_INVITES: Final = (
    select(
        Invite.token_id,
        Invite.purpose,
        Admin.handle,
        Service.name,
        Invite.name,
        Invite.uses,
        Invite.used,
        Invite.created_at,
        Invite.expires_at,
        Invite.revoked_at,
    )
    .outerjoin(Service, Service.id == Invite.service_id)
    .outerjoin(Admin, Admin.id == Service.owner_id)
)


async def spend(connection: AsyncConnection, invite: InviteRecord) -> None:
    """Spend one use of an invitation; raises ``revoked`` or ``invite_spent``.

    One statement checks and counts, so if many do this at once, only as many succeed as uses are left.
    """
    query = (
        update(Invite)
        .where(
            Invite.token_id == invite.id,
            Invite.used < Invite.uses,
            Invite.expires_at > int(time.time()),
            Invite.revoked_at.is_(None),
        )
        .values(used=Invite.used + 1)
        .returning(Invite.id)
    )
    if (await connection.execute(query)).scalar_one_or_none() is None:
        state = select(Invite.revoked_at).where(Invite.token_id == invite.id)
        if (await connection.execute(state)).scalar_one_or_none() is not None:
            raise KdispatchError("revoked", "The invitation was revoked.")
        raise KdispatchError("invite_spent")


class Invites:
    """The stored invitations. Every method may raise ``storage_unavailable``. ``source`` is the caller's address."""

    def __init__(self, database: Database, changes: Changes, audit: Audit) -> None:
        self._database = database
        self._changes = changes
        self._audit = audit

    async def create(
        self, owner: TokenIdentity, name: str, code: NewToken, *, purpose: str, uses: int, source: str
    ) -> InviteRecord | None:
        """Store an invitation to ``owner``'s service ``name``; ``None`` if there is no such service.

        Raises ``quota_exceeded``.
        """
        service = f"{owner.handle}/{name}"
        async with self._database.write() as connection:
            service_id = await id_of(connection, owner, name)
            if service_id is None:
                return None
            await _trim_ended(connection, service_id)
            await place_for_invite(connection, owner.admin_id)
            made = _new(code, service, purpose, uses)
            await _add(connection, service_id, code, made)
            detail = {"invite": made.id, **_terms(made)}
            event = AuditRecord(
                actor=owner.actor, action="invite.create", subject=service, source=source, detail=detail
            )
            await self._audit.add(connection, owner.admin_id, event)
        return made

    async def create_code(self, code: NewToken, *, uses: int) -> InviteRecord:
        """Store a sign-up code."""
        async with self._database.write() as connection:
            made = _new(code, None, "sign-up", uses)
            await _add(connection, None, code, made)
            detail = {"code": made.id, **_terms(made)}
            event = AuditRecord(actor=OPERATOR, action="code.create", subject="", source="", detail=detail)
            await self._audit.add(connection, None, event)
        return made

    async def find(self, digest: bytes) -> InviteRecord | None:
        """The invitation with this code's digest, in any state."""
        async with self._database.read() as connection:
            rows = await connection.execute(_INVITES.where(Invite.digest == digest))
            return next((_record(row) for row in rows), None)

    async def of(
        self, owner: TokenIdentity, name: str, *, after: tuple[int, str] | None = None, limit: int | None = None
    ) -> list[InviteRecord]:
        """The invitations to ``owner``'s service ``name``, the newest first; ended ones for 30 days.

        ``after`` is the creation time and id of the invitation after which the list begins.
        """
        return await self._list(Invite.service_id == service_of(owner, name), after, limit)

    async def codes(self, *, after: tuple[int, str] | None = None, limit: int | None = None) -> list[InviteRecord]:
        """The sign-up codes, listed like :meth:`of`."""
        return await self._list(Invite.service_id.is_(None), after, limit)

    async def revoke(self, owner: TokenIdentity, name: str, invite_id: str, *, tokens: bool, source: str) -> bool:
        """End an invitation to ``owner``'s service ``name``, on request with its tokens; returns whether there is one.

        Nothing that runs rests on an invitation itself: other relays need to learn only of revoked tokens.
        """
        service = f"{owner.handle}/{name}"
        async with self._changes.taking(service) as taking:
            connection = taking.connection
            service_id = await id_of(connection, owner, name)
            found, was_revoked = await _end(connection, Invite.service_id == service_id, invite_id)
            ended = 0
            if tokens and found is not None:
                which = (Token.invite_id == found) & Token.revoked_at.is_(None)
                await lock_tokens(connection, which)
                made = update(Token).where(which).values(revoked_at=int(time.time()))
                ended = (await connection.execute(made)).rowcount
            if not ended:
                taking.nothing()
            if found is None or (was_revoked and not ended):
                return found is not None
            event = AuditRecord(
                actor=owner.actor,
                action="invite.revoke",
                subject=service,
                source=source,
                detail={"invite": invite_id} | ({"tokens": ended} if tokens else {}),
            )
            await self._audit.add(connection, owner.admin_id, event)
        return True

    async def revoke_code(self, code_id: str) -> bool:
        """End a sign-up code; returns whether there is one."""
        async with self._database.write() as connection:
            found, was_revoked = await _end(connection, Invite.purpose == "sign-up", code_id)
            if found is None or was_revoked:
                return found is not None
            event = AuditRecord(actor=OPERATOR, action="code.revoke", subject="", source="", detail={"code": code_id})
            await self._audit.add(connection, None, event)
        return True

    async def accept(self, invite: InviteRecord, token: NewToken, *, source: str) -> None:
        """Store a new token for one use; raises ``invite_spent``, ``revoked``, ``quota_exceeded``."""
        async with self._database.write() as connection:
            await spend(connection, invite)
            query = (
                select(Invite.id, Service.id, Service.owner_id)
                .join(Service, Service.id == Invite.service_id)
                .where(Invite.token_id == invite.id)
            )
            invite_id, service_id, admin_id = (await connection.execute(query)).one()
            await trim_ended_tokens(connection, admin_id)
            await place_for_token(connection, admin_id, invited=True)
            kind = KINDS[invite.purpose]
            values = {"digest": token.digest, "token_id": token.id, "kind": kind, "name": token.name}
            await connection.execute(
                insert(Token).values(
                    admin_id=admin_id,
                    service_id=service_id,
                    invite_id=invite_id,
                    expires_at=token.expires,
                    **values,
                )
            )
            event = AuditRecord(
                actor=f"inv {invite.id} {invite.name}",
                action="invite.accept",
                subject=invite.service or "",
                source=source,
                detail={"token": token.id, "kind": kind, "name": token.name},
            )
            await self._audit.add(connection, admin_id, event)

    async def _list(
        self, which: ColumnElement[bool], after: tuple[int, str] | None, limit: int | None
    ) -> list[InviteRecord]:
        query = _INVITES.where(which, Invite.expires_at > int(time.time()) - KEPT)
        if after is not None:
            query = query.where(tuple_(*_PLACE) < after)
        query = query.order_by(*(column.desc() for column in _PLACE)).limit(limit)
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [_record(row) for row in rows]


async def _trim_ended(connection: AsyncConnection, service_id: int) -> None:
    """Drop a service's oldest invitations that cannot be accepted any more, if there are more than are kept.

    Invitations with valid tokens stay, because the tokens can be revoked through them.
    """
    now = int(time.time())
    of_service = (Invite.service_id == service_id) & or_(Invite.ended_at <= now, Invite.used >= Invite.uses)
    newest = select(Invite.id).where(of_service).order_by(*(column.desc() for column in _PLACE)).limit(ENDED_INVITES)
    newest = newest.correlate(None)
    hold = exists().where(Token.invite_id == Invite.id, or_(Token.ended_at.is_(None), Token.ended_at > now))
    rows = select(Invite.id).where(of_service, Invite.id.not_in(newest), ~hold).order_by(*_PLACE)
    await drop(connection, Invite.id, rows)


async def _end(connection: AsyncConnection, which: ColumnElement[bool], code_id: str) -> tuple[int | None, bool]:
    """Revoke an invitation; returns its row, if there is one, and whether it was revoked before."""
    query = select(Invite.id, Invite.revoked_at).where(which, Invite.token_id == code_id)
    row = (await connection.execute(query.with_for_update(key_share=True))).one_or_none()
    if row is None:
        return None, False
    if row.revoked_at is None:
        await connection.execute(update(Invite).where(Invite.id == row.id).values(revoked_at=int(time.time())))
    return row.id, row.revoked_at is not None


def _new(code: NewToken, service: str | None, purpose: str, uses: int) -> InviteRecord:
    assert code.expires is not None
    return InviteRecord(
        id=code.id,
        purpose=purpose,
        service=service,
        name=code.name,
        uses=uses,
        used=0,
        created=int(time.time()),
        expires=code.expires,
        revoked=False,
    )


def _terms(made: InviteRecord) -> dict[str, object]:
    return {"for": made.purpose, "uses": made.uses, "expires": made.expires, "name": made.name}


async def _add(connection: AsyncConnection, service_id: int | None, code: NewToken, made: InviteRecord) -> None:
    values = {"digest": code.digest, "token_id": made.id, "purpose": made.purpose, "name": made.name, "used": 0}
    await connection.execute(
        insert(Invite).values(
            service_id=service_id, uses=made.uses, created_at=made.created, expires_at=made.expires, **values
        )
    )


def _record(row: Sequence[Any]) -> InviteRecord:
    """A record from the columns of ``_INVITES``."""
    token_id, purpose, handle, service, name, uses, used, created, expires, revoked = row
    return InviteRecord(
        id=token_id,
        purpose=purpose,
        service=f"{handle}/{service}" if service else None,
        name=name,
        uses=uses,
        used=used,
        created=created,
        expires=expires,
        revoked=revoked is not None,
    )
