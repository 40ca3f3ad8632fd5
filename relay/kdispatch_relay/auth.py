"""Who may do what. A token is looked up once, into one identity that both routes and authorises."""

from __future__ import annotations

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import split_service
from kdispatch_protocol.tokens import token_digest, token_kind
from kdispatch_relay.store.records import Identity, ServiceRecord
from kdispatch_relay.store.repository import Repository

__all__ = ["Authority", "Identity", "ServiceRecord"]


class Authority:
    """The one place that decides. Every method may raise ``storage_unavailable``."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    async def identify(self, token: str | None) -> Identity:
        """Whom ``token`` stands for; raise ``token_refused`` when it is missing, malformed or not known."""
        if token is None:
            raise KdispatchError("token_refused", "This needs a token.")
        if token_kind(token) is None:
            raise KdispatchError("token_refused", "The token is malformed: cut short or mistyped.")
        identity = await self.repository.identity(token_digest(token))
        if identity is None:
            raise KdispatchError("token_refused")
        return identity

    async def may_host(self, service: str, token: str) -> ServiceRecord:
        """The service, for its own ``svc`` token or its owner's ``adm``.

        Raises ``bad_name``, ``token_refused``, ``not_permitted``, or ``unknown_service`` to an owner
        who has no service of that name.
        """
        handle, name = split_service(service)
        identity = await self.identify(token)
        if identity.service is not None and identity.service.service == service:
            return identity.service
        if identity.kind != "adm" or identity.handle != handle:
            # Decided without a look at the service, so that the answer does not tell whether it exists.
            raise KdispatchError("not_permitted", f"This token may not host {service!r}.")
        record = await self.repository.service(handle, name)
        if record is None:
            raise KdispatchError("unknown_service")
        return record

    async def may_open(self, service: str, token: str | None) -> ServiceRecord:
        """The service, if streams to it are open to ``token``: to anybody while it is public, else to its owner.

        Raises ``bad_name``, ``token_refused`` for a token that is shown but not known, and ``unknown_service``
        for what does not exist or is not open to this token: the same text and the same look-up for both.
        """
        return await self._open_to(service, token, to_hosts=False)

    async def may_read(self, service: str, token: str | None) -> ServiceRecord:
        """The service, if it may be looked at: like :meth:`may_open`, and by its own ``svc`` token too."""
        return await self._open_to(service, token, to_hosts=True)

    async def _open_to(self, service: str, token: str | None, *, to_hosts: bool) -> ServiceRecord:
        handle, name = split_service(service)
        identity = None if token is None else await self.identify(token)
        record = await self.repository.service(handle, name)
        if record is None or not (record.access == "public" or _has_right(identity, record, to_hosts=to_hosts)):
            raise KdispatchError("unknown_service")
        return record


def _has_right(identity: Identity | None, record: ServiceRecord, *, to_hosts: bool) -> bool:
    if identity is None:
        return False
    if identity.service is not None:
        return to_hosts and identity.service.service == record.service
    return identity.kind == "adm" and record.service.startswith(f"{identity.handle}/")
