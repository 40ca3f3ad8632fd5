"""Everything the relay asks of its database. Callers check names and make tokens; here are rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.exc import IntegrityError

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.batches import Batches
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Admin, Relay, Service, Token
from kdispatch_relay.store.records import Identity, ServiceRecord

__all__ = ["Repository"]

_IDENTITIES: Final = (
    select(Token.digest, Token.kind, Admin.id, Admin.handle, Service.name, Service.access)
    .join(Admin, Admin.id == Token.admin_id)
    .outerjoin(Service, Service.id == Token.service_id)
)
_SERVICES: Final = select(Admin.handle, Service.name, Service.access).join(Admin, Admin.id == Service.owner_id)


class Repository:
    """Admins, services and tokens. Every method may raise ``storage_unavailable``."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._identities = Batches(self._find_identities)
        self._services = Batches(self._find_services)

    async def add_admin(self, handle: str, digest: bytes) -> None:
        """Create an admin with its token's digest; raise ``handle_taken``.

        The unique constraint decides, not a look before: of many at once exactly one wins.
        """
        try:
            async with self.database.write() as connection:
                new = await connection.execute(insert(Admin).values(handle=handle).returning(Admin.id))
                await connection.execute(insert(Token).values(digest=digest, kind="adm", admin_id=new.scalar_one()))
        except IntegrityError as error:
            raise KdispatchError("handle_taken", f"The handle {handle!r} is taken.") from error

    async def add_service(self, owner: Identity, name: str, access: str, digest: bytes) -> ServiceRecord:
        """Create a service of ``owner`` with its token's digest; raise ``service_exists``."""
        service = f"{owner.handle}/{name}"
        try:
            async with self.database.write() as connection:
                values = {"owner_id": owner.admin_id, "name": name, "access": access}
                new = await connection.execute(insert(Service).values(values).returning(Service.id))
                token = {"digest": digest, "kind": "svc", "admin_id": owner.admin_id, "service_id": new.scalar_one()}
                await connection.execute(insert(Token).values(token))
        except IntegrityError as error:
            raise KdispatchError("service_exists", f"The service {service!r} exists already.") from error
        return ServiceRecord(service, access)

    async def delete_service(self, owner: Identity, name: str) -> bool:
        """Delete a service of ``owner`` with its tokens; returns whether there was one."""
        ids = select(Service.id).where(Service.owner_id == owner.admin_id, Service.name == name).with_for_update()
        async with self.database.write() as connection:
            found = (await connection.execute(ids)).scalar_one_or_none()
            if found is None:
                return False
            await connection.execute(delete(Token).where(Token.service_id == found))
            await connection.execute(delete(Service).where(Service.id == found))
        return True

    async def identity(self, digest: bytes) -> Identity | None:
        """Whom the token with this digest stands for."""
        return await self._identities.get(digest)

    async def service(self, handle: str, name: str) -> ServiceRecord | None:
        """The service ``handle/name``."""
        return await self._services.get((handle, name))

    async def services_of(self, owner: Identity) -> list[ServiceRecord]:
        """All services of one admin, by name."""
        async with self.database.read() as connection:
            rows = await connection.execute(_SERVICES.where(Admin.id == owner.admin_id).order_by(Service.name))
            return [ServiceRecord(f"{row.handle}/{row.name}", row.access) for row in rows]

    async def relay_id(self) -> str:
        """The relay's id, of 32 hexadecimal digits: one for all processes that use this database, now and later."""
        async with self.database.read() as connection:
            return str((await connection.execute(select(Relay.relay_id))).scalar_one())

    async def probe(self) -> None:
        """Return when the database can be read and written at this moment; changes nothing."""
        async with self.database.write() as connection:
            await connection.execute(select(Admin.id).limit(1))

    async def _find_identities(self, digests: Collection[bytes]) -> dict[bytes, Identity]:
        async with self.database.read() as connection:
            rows = await connection.execute(_IDENTITIES.where(Token.digest.in_(digests)))
        return {
            # The outer join leaves an admin's token without a service.
            digest: Identity(kind, admin_id, handle, ServiceRecord(f"{handle}/{name}", access) if name else None)
            for digest, kind, admin_id, handle, name, access in rows
        }

    async def _find_services(self, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], ServiceRecord]:
        async with self.database.read() as connection:
            rows = await connection.execute(_SERVICES.where(tuple_(Admin.handle, Service.name).in_(names)))
        return {(handle, name): ServiceRecord(f"{handle}/{name}", access) for handle, name, access in rows}
