"""Quotas: what an admin may have, and whether one more fits. The check runs in the transaction that adds."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.models import Admin, Invite, Service, Token
from kdispatch_relay.store.records import QUOTAS, Quotas

__all__ = ["COLUMNS", "counted_tokens", "place_for_invite", "place_for_service", "place_for_token", "quotas_of"]

#: The columns of :func:`quotas_of`, in its order.
COLUMNS = tuple(getattr(Admin, f"max_{name}") for name in QUOTAS)


_DEFAULTS: Final = Quotas()
#: The percentage of an account's tokens that may come from invitations. The holders of a code with many uses decide how
#: often it is used, and the owner must still be able to create a token.
_INVITED_PERCENT: Final = 75


def quotas_of(*own: int | None) -> Quotas:
    """The default quotas, replaced by the admin's own where there are any."""
    if not any(value is not None for value in own):
        return _DEFAULTS
    return replace(_DEFAULTS, **{name: value for name, value in zip(QUOTAS, own, strict=True) if value is not None})


def counted_tokens() -> Any:
    """The condition for a token to count: valid, and not a service's own."""
    return (
        Token.own.is_(False)
        & Token.revoked_at.is_(None)
        & or_(Token.expires_at.is_(None), Token.expires_at > int(time.time()))
    )


async def place_for_service(connection: AsyncConnection, admin_id: int) -> None:
    """Raise ``quota_exceeded`` if the admin has reached its limit of services."""
    allowed = (await _quotas(connection, admin_id)).services
    count = select(func.count()).select_from(Service).where(Service.owner_id == admin_id)
    _check((await connection.execute(count)).scalar_one(), allowed, "services")


async def place_for_token(connection: AsyncConnection, admin_id: int, *, invited: bool = False) -> None:
    """Raise ``quota_exceeded`` if the admin has reached its limit of tokens, in total or from invitations."""
    allowed = (await _quotas(connection, admin_id)).tokens
    count = select(func.count()).select_from(Token).where(Token.admin_id == admin_id, counted_tokens())
    _check((await connection.execute(count)).scalar_one(), allowed, "tokens")
    if invited:
        of_invites = count.where(Token.invite_id.is_not(None))
        most = max(min(allowed, 1), allowed * _INVITED_PERCENT // 100)
        _check((await connection.execute(of_invites)).scalar_one(), most, "tokens from invitations")


async def place_for_invite(connection: AsyncConnection, admin_id: int) -> None:
    """Raise ``quota_exceeded`` if the admin has as many open invitations as its limit of tokens."""
    allowed = (await _quotas(connection, admin_id)).tokens
    count = (
        select(func.count())
        .select_from(Invite)
        .join(Service, Service.id == Invite.service_id)
        .where(
            Service.owner_id == admin_id,
            Invite.revoked_at.is_(None),
            Invite.expires_at > int(time.time()),
            Invite.used < Invite.uses,
        )
    )
    _check((await connection.execute(count)).scalar_one(), allowed, "invitations")


async def _quotas(connection: AsyncConnection, admin_id: int) -> Quotas:
    # The lock on the admin's row, always taken last, lets only one transaction at a time count and add.
    row = await connection.execute(select(*COLUMNS).where(Admin.id == admin_id).with_for_update(key_share=True))
    return quotas_of(*row.one())


def _check(count: int, allowed: int, what: str) -> None:
    if count >= allowed:
        raise KdispatchError("quota_exceeded", f"The account has {count:,} {what}, and may have {allowed:,}.")
