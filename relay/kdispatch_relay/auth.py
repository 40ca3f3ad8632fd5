"""Rights: what each token allows. A token is looked up once, into one identity that both routes and authorises."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import split_service
from kdispatch_protocol.tokens import token_digest, token_kind
from kdispatch_relay.rates import Recent
from kdispatch_relay.store.records import AuditRecord, InviteRecord, ServiceRecord, TokenIdentity
from kdispatch_relay.store.repository import Repository

__all__ = ["RIGHTS", "Authority", "Grant", "Party", "Right", "ServiceRecord", "TokenIdentity"]


class Party(Enum):
    """What a token makes its holder to a service; without a token, anybody. The value is the text for users."""

    ANYBODY = "anybody"
    ADMIN = "an admin"
    OWNER = "its owner"
    SERVICE = "its `svc_` token"
    CLIENT = "its `cli_` token"
    HOST = "its own `hst_` token"
    INVITATION = "an `inv_` code"


@dataclass(frozen=True, slots=True)
class Right:
    """Which parties may do something; ``public``: which others also may, if the service is public.

    ``hidden``: callers without the right get the same answer as for a service that does not exist. For the other rights
    they are told that they may not, and the service is not looked up.
    """

    does: str
    parties: frozenset[Party]
    public: frozenset[Party] = frozenset()
    hidden: bool = False


def _right(does: str, *parties: Party, public: bool = False, hidden: bool = False) -> Right:
    return Right(does, frozenset(parties), frozenset({Party.ANYBODY} if public else ()), hidden)


_OWNER: Final = (Party.OWNER,)
_EVERYBODY_KNOWN: Final = (Party.ADMIN, Party.SERVICE, Party.CLIENT)

#: All rights. The table in docs/security.md is generated from it.
RIGHTS: Final[Mapping[str, Right]] = {
    "sign_up": _right("take a handle (where sign-up is open; else with a code)", Party.ANYBODY, Party.INVITATION),
    "whoami": _right("ask what a token stands for", *_EVERYBODY_KNOWN),
    "service.create": _right("create a service", Party.ADMIN),
    "service.list": _right("list one's own services", Party.ADMIN),
    "service.read": _right(
        "look at a service and its hosts", Party.OWNER, Party.SERVICE, Party.CLIENT, public=True, hidden=True
    ),
    "service.clients": _right("list who is connected to a service", *_OWNER),
    "service.change": _right("change a service", *_OWNER),
    "service.rotate": _right("give a service a new token", *_OWNER),
    "service.delete": _right("delete a service", *_OWNER),
    "invite.create": _right("invite a user to a service", *_OWNER),
    "invite.list": _right("list a service's invitations", *_OWNER),
    "invite.revoke": _right("revoke an invitation", *_OWNER),
    "invite.accept": _right("accept an invitation", Party.INVITATION),
    "token.create": _right("create a token", Party.ADMIN),
    "token.list": _right("list one's own tokens", Party.ADMIN),
    "token.revoke": _right("revoke one of one's own tokens", Party.ADMIN),
    "host.withdraw": _right("withdraw a live host", Party.OWNER, Party.HOST),
    "audit.read": _right("read one's own audit", Party.ADMIN),
    "host": _right("host a service (OFFER, ATTACH)", Party.OWNER, Party.SERVICE),
    "open": _right("connect to a service (OPEN, ATTACH)", Party.OWNER, Party.CLIENT, public=True, hidden=True),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """A right to an existing service. ``identity`` belongs to the token that it rests on; ``None`` without a token."""

    service: ServiceRecord
    identity: TokenIdentity | None = None

    @property
    def public(self) -> bool:
        """Whether everyone may connect."""
        return self.service.access == "public"

    @property
    def expires(self) -> int | None:
        """When it expires, in unix seconds; ``None`` if it does not expire."""
        return self.identity.expires if self.identity is not None else None


_ACCEPTED: Final = 32_768  # digests, of some 200 bytes each


class Authority:
    """The one place that decides about rights. Every method may raise ``storage_unavailable``."""

    def __init__(self, repository: Repository, *, sign_up: str = "open") -> None:
        self.repository = repository
        self._sign_up = sign_up
        self.accepted: Recent[bytes] = Recent(_ACCEPTED)  # digests of tokens that were valid lately

    async def identify(self, token: str | bytes | None) -> TokenIdentity:
        """The identity of ``token``. For a token that was checked before, its digest is enough.

        Raises ``token_refused`` if it is missing, malformed, unknown or expired, and ``revoked`` if it was revoked or
        its admin is suspended.
        """
        if token is None:
            raise KdispatchError("token_refused", "This needs a token.")
        if isinstance(token, str):
            if token_kind(token) is None:
                raise KdispatchError("token_refused", "The token is malformed: cut short or mistyped.")
            token = token_digest(token)
        identity = await self.repository.identity(token)
        if identity is None:
            raise KdispatchError("token_refused")
        if identity.revoked:
            raise KdispatchError("revoked", "The token was revoked.")
        if identity.expires is not None and identity.expires <= time.time():
            raise KdispatchError("token_refused", f"The token expired at {_written(identity.expires)}.")
        if identity.suspended:
            raise KdispatchError("revoked", f"The account {identity.handle!r} is suspended by the relay's operator.")
        self.accepted.add(token)
        self.repository.used(identity)
        return identity

    async def admin(self, token: str | None, action: str) -> TokenIdentity:
        """The admin whose ``token`` this is, for an action in its own account; raises ``not_permitted`` for others."""
        identity = await self.identify(token)
        if _party(identity, "", "") not in RIGHTS[action].parties:
            raise KdispatchError("not_permitted", "This needs an admin's token.")
        return identity

    async def owner(self, token: str | None, handle: str, action: str) -> TokenIdentity:
        """The admin whose ``token`` this is, for an action under ``handle``.

        Raises ``not_permitted`` for everyone else, without looking up what exists.
        """
        identity = await self.identify(token)
        if _party(identity, handle, "") not in RIGHTS[action].parties:
            raise KdispatchError("not_permitted", "Only its owner may do this.")
        return identity

    async def may_host(self, service: str, token: str | bytes | None) -> Grant:
        """The right to host a service.

        Raises ``bad_name``, ``token_refused``, ``revoked``, ``not_permitted``, or ``unknown_service`` to an owner who
        has no service of that name.
        """
        handle, name = split_service(service)
        identity = await self.identify(token)
        if _party(identity, handle, service) not in RIGHTS["host"].parties:
            # Decided without looking up the service, so that the answer does not tell whether it exists.
            raise KdispatchError("not_permitted", f"This token may not host {service!r}.")
        record = identity.service or await self.repository.service(handle, name)
        if record is None:
            raise KdispatchError("unknown_service")
        return Grant(record, identity)

    async def may_open(self, service: str, token: str | bytes | None) -> Grant:
        """The right to connect to a service. While it is public, a token is not needed and not looked up.

        Raises ``bad_name``, ``token_refused`` and ``revoked``. Raises ``unknown_service`` for a service that does not
        exist, and for one that is not open to this token: both with the same text and the same look-ups.
        """
        handle, name = split_service(service)
        kept = self.repository.kept_service(handle, name)
        record = kept or await self.repository.service_now(handle, name)
        if record is not None and record.access == "public" and not record.suspended:
            return Grant(record)
        identity = None if token is None else await self.identify(token)
        if kept is not None and not _is_hidden("open", identity, handle, service, kept):
            return Grant(kept, identity)
        # The time of a refusal must not tell whether another caller has looked up the service just now.
        record = record if kept is None else await self.repository.service_now(handle, name)
        return _hidden("open", identity, handle, service, record)

    async def may_read(self, service: str, token: str | None) -> Grant:
        """The right to read a service: like :meth:`may_open`, but if a token is shown, it must be valid."""
        handle, name = split_service(service)
        identity = None if token is None else await self.identify(token)
        kept = self.repository.kept_service(handle, name)
        if kept is None or _is_hidden("service.read", identity, handle, service, kept):
            kept = await self.repository.service_now(handle, name)
        return _hidden("service.read", identity, handle, service, kept)

    async def invitation(self, token: str | None) -> InviteRecord:
        """The invitation with this code.

        Raises ``token_refused`` if it is missing, malformed or unknown, ``revoked`` if it was revoked, and
        ``invite_spent`` if it has expired or is used up.
        """
        if token is None or token_kind(token) != "inv":
            raise KdispatchError("token_refused", "This needs the code of an invitation.")
        invite = await self.repository.invites.find(token_digest(token))
        if invite is None:
            raise KdispatchError("token_refused", "The relay does not know this invitation.")
        if invite.revoked:
            raise KdispatchError("revoked", "The invitation was revoked.")
        if invite.expires <= time.time() or invite.used >= invite.uses:
            raise KdispatchError("invite_spent")
        return invite

    async def sign_up(self, token: str | None) -> InviteRecord | None:
        """The code that allows a sign-up, if this relay needs one; otherwise ``None``, and the token is not looked up.

        Raises ``not_permitted`` if sign-up is closed, and for an invitation to a service; and the errors of
        :meth:`invitation`.
        """
        if self._sign_up == "closed":
            raise KdispatchError("not_permitted", "This relay does not accept new admins.")
        if self._sign_up == "open":
            return None
        if token is None:
            raise KdispatchError("token_refused", "This relay accepts new admins only with a code from its operator.")
        code = await self.invitation(token)
        if code.purpose != "sign-up":
            raise KdispatchError("not_permitted", "This is an invitation to a service, not a sign-up code.")
        return code

    def forget(self, scope: str) -> None:
        """Forget cached look-ups of ``handle/name``, or of a handle, which may have changed."""
        self.repository.forget(scope)

    def note(self, event: AuditRecord) -> None:
        """Add an event to the audit. Its subject is a service, whose owner may read it."""
        self.repository.audit.note(event.subject.partition("/")[0], event)


def _party(identity: TokenIdentity | None, handle: str, service: str) -> Party | None:
    """What the token's holder is to ``service`` of ``handle``; ``None`` if nothing."""
    if identity is None:
        return Party.ANYBODY
    if identity.kind == "adm":
        return Party.OWNER if identity.handle == handle else Party.ADMIN
    if identity.service is None or identity.service.service != service:
        return None
    return Party.SERVICE if identity.kind == "svc" else Party.CLIENT


def _hidden(
    action: str, identity: TokenIdentity | None, handle: str, service: str, record: ServiceRecord | None
) -> Grant:
    if record is None or _is_hidden(action, identity, handle, service, record):
        raise KdispatchError("unknown_service")
    return Grant(record, identity if _party(identity, handle, service) in RIGHTS[action].parties else None)


def _is_hidden(action: str, identity: TokenIdentity | None, handle: str, service: str, record: ServiceRecord) -> bool:
    right = RIGHTS[action]
    if record.suspended:
        return True
    open_to_all = record.access == "public" and Party.ANYBODY in right.public
    return not open_to_all and _party(identity, handle, service) not in right.parties


def _written(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
