"""All database access of the relay. Callers validate names and create tokens; this code stores and finds rows."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import bindparam, select, tuple_, update

from kdispatch_relay.store.accounts import Accounts
from kdispatch_relay.store.audit import Audit
from kdispatch_relay.store.batches import Batches
from kdispatch_relay.store.changes import Changes
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.invites import Invites
from kdispatch_relay.store.kept import Kept
from kdispatch_relay.store.models import Admin, Invite, Relay, Service, Token
from kdispatch_relay.store.quotas import COLUMNS, quotas_of
from kdispatch_relay.store.records import ServiceRecord, TokenIdentity
from kdispatch_relay.store.services import Services
from kdispatch_relay.store.tidying import BATCH, drop_where
from kdispatch_relay.store.tokens import KEPT, Tokens

__all__ = ["Repository"]

_SERVICE: Final = (Service.name, Service.access, Service.pins, Admin.suspended_at, *COLUMNS)
_IDENTITIES: Final = (
    select(
        Token.digest,
        Token.kind,
        Admin.id,
        Token.token_id,
        Token.name,
        Token.expires_at,
        Token.revoked_at,
        Admin.handle,
        *_SERVICE,
    )
    .join(Admin, Admin.id == Token.admin_id)
    .outerjoin(Service, Service.id == Token.service_id)
)
_SERVICES: Final = select(Admin.handle, *_SERVICE).join(Admin, Admin.id == Service.owner_id)


class Repository:
    """Look-ups of tokens and services, and changes to them. Every method may raise ``storage_unavailable``."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.changes = Changes(database)
        self.audit = Audit(database)
        parts = (database, self.changes, self.audit)
        self.accounts = Accounts(*parts)
        self.services = Services(*parts)
        self.tokens = Tokens(*parts)
        self.invites = Invites(*parts)
        self._identities = Kept(Batches(self._find_identities), lambda _, identity: identity.handle)
        self._services = Kept(Batches(self._find_services), lambda key, _: key[0])
        self._names = Kept(Batches(self._find_names), lambda _, __: "")  # a token is never renamed
        self.changes.forget = self.forget
        self._used: dict[str, int] = {}  # times of last use by token id, if not stored yet

    def forget(self, scope: str) -> None:
        """Drop cached look-ups of a handle, given as ``handle/name`` or alone, because something there has changed."""
        handle = scope.partition("/")[0]
        for kept in (self._identities, self._services):
            kept.forget(handle)

    async def identity(self, digest: bytes) -> TokenIdentity | None:
        """What the token with this digest stands for, or stood for."""
        kept = self._identities.kept(digest)
        if kept is None or kept.revoked or kept.suspended:
            return await self._identities.look(digest)  # not cached: the account may be active again
        return kept

    async def service(self, handle: str, name: str) -> ServiceRecord | None:
        """The service ``handle/name``."""
        return await self._services.get((handle, name))

    def kept_service(self, handle: str, name: str) -> ServiceRecord | None:
        """The service ``handle/name``, if it is cached."""
        return self._services.kept((handle, name))

    async def service_now(self, handle: str, name: str) -> ServiceRecord | None:
        """The service ``handle/name``, without the cache."""
        return await self._services.look((handle, name))

    async def token_name(self, token_id: str) -> str | None:
        """The display name of the token with this id."""
        return await self._names.get(token_id)

    def used(self, identity: TokenIdentity) -> None:
        """Note that a token was accepted."""
        self._used[identity.id] = int(time.time())

    async def relay_id(self) -> str:
        """The relay's id, 32 hexadecimal digits: the same for all processes that use this database, now and later."""
        async with self.database.read() as connection:
            return str((await connection.execute(select(Relay.relay_id))).scalar_one())

    async def write_used(self) -> None:
        """Store when tokens were last used. What cannot be stored is kept for the next call."""
        query = update(Token).where(Token.token_id == bindparam("token")).values(last_used_at=bindparam("moment"))
        # Sorted by id, so that relays on one database do not deadlock.
        left, self._used = sorted(self._used.items()), {}
        try:
            while left:
                async with self.database.write() as connection:
                    await connection.execute(query, [{"token": id_, "moment": moment} for id_, moment in left[:BATCH]])
                del left[:BATCH]
        except BaseException:
            self._used = dict(left) | self._used
            raise

    async def forget_ended(self) -> None:
        """Drop tokens and invitations that ended longer ago than they are kept."""
        since = int(time.time()) - KEPT
        await drop_where(self.database, Token.digest, Token.ended_at < since)
        await drop_where(self.database, Invite.id, Invite.ended_at < since)

    async def _find_identities(self, digests: Collection[bytes]) -> dict[bytes, TokenIdentity]:
        async with self.database.read() as connection:
            rows = await connection.execute(_IDENTITIES.where(Token.digest.in_(digests)))
        found = {}
        for digest, kind, admin_id, token_id, name, expires, revoked, handle, *service in rows:
            found[digest] = TokenIdentity(
                kind=kind,
                admin_id=admin_id,
                handle=handle,
                service=_record(handle, service) if service[0] else None,  # an admin's token has no service
                id=token_id,
                name=name,
                expires=expires,
                revoked=revoked is not None,
                suspended=service[3] is not None,
            )
        return found

    async def _find_names(self, ids: Collection[str]) -> dict[str, str]:
        async with self.database.read() as connection:
            rows = await connection.execute(select(Token.token_id, Token.name).where(Token.token_id.in_(ids)))
        return dict(rows.all())

    async def _find_services(self, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], ServiceRecord]:
        async with self.database.read() as connection:
            rows = await connection.execute(_SERVICES.where(tuple_(Admin.handle, Service.name).in_(names)))
        return {(handle, service[0]): _record(handle, service) for handle, *service in rows}


def _record(handle: str, row: Sequence[Any]) -> ServiceRecord:
    """A record from the columns of ``_SERVICE``."""
    name, access, pins, suspended, *quotas = row
    return ServiceRecord(f"{handle}/{name}", access, pins, suspended is not None, quotas_of(*quotas))
