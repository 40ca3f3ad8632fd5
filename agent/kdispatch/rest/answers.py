"""The answers of a relay's REST API as values, and how to read them from its JSON.

Members that a relay leaves out are ``None``, times are timezone-aware. Unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from kdispatch.network.answers import ServiceInfo, count, flag, read_service, text
from kdispatch.rest.listing import Page
from kdispatch_protocol.tokens import token_kind

__all__ = [
    "MOST_HOSTS",
    "AcceptedInvite",
    "AuditEvent",
    "AuditPage",
    "ClientInfo",
    "CreatedInvite",
    "CreatedService",
    "CreatedToken",
    "HostInfo",
    "Identity",
    "InviteInfo",
    "RotatedService",
    "ServiceInfo",
    "SignedUp",
    "TokenInfo",
    "TokenName",
    "read_accepted_invite",
    "read_audit_page",
    "read_clients",
    "read_created_invite",
    "read_created_service",
    "read_created_token",
    "read_hosts",
    "read_identity",
    "read_invites",
    "read_page",
    "read_rotated_service",
    "read_service",
    "read_services",
    "read_signed_up",
    "read_tokens",
]

MOST_HOSTS: Final = 200  #: on one page, the most that relays return

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SignedUp:
    """A new handle, and its admin token."""

    handle: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """A token's kind (``adm``, ``svc``, ``cli``), its handle, the service that it is limited to, and its id."""

    kind: str
    handle: str
    service: str | None = None
    id: str | None = None
    name: str | None = None
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class CreatedService:
    """A new service: ``HANDLE/NAME``, who may connect (``public``, ``token``), and the token to host it.

    ``pins``: whether a client may choose its host.
    """

    service: str
    access: str
    pins: bool
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RotatedService:
    """A service's new token. The old ones are valid until ``old_until``; if that is ``None`` they ended at once."""

    service: str
    id: str
    old_until: datetime | None
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenName:
    """Id and name of a token, without the token itself."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class HostInfo:
    """One live host: its id, the time since when it offers the service, its labels and its open streams.

    ``source`` (its address) and ``token`` (the one it used) are only sent to the service's owner.
    """

    host: str
    since: datetime
    labels: Mapping[str, str]
    streams: int
    source: str | None = None
    token: TokenName | None = None


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One agent with open streams to a service: its process id, its address, its start, and the token it used."""

    agent: str
    source: str
    since: datetime
    streams: int
    token: TokenName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteInfo:
    """An invitation. ``purpose`` is ``host`` or ``connect``."""

    id: str
    purpose: str
    name: str
    uses: int
    used: int
    created: datetime
    expires: datetime
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedInvite(InviteInfo):
    """A new invitation, and the code to send to the invited person."""

    service: str
    code: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AcceptedInvite:
    """The result of an invitation: a new token for one service."""

    service: str
    purpose: str
    kind: str
    id: str
    name: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as its admin sees it. ``invite`` is the id of the invitation that it came from."""

    id: str
    kind: str
    name: str
    created: datetime
    service: str | None = None
    expires: datetime | None = None
    last_used: datetime | None = None
    invite: str | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class CreatedToken:
    """A new token."""

    id: str
    kind: str
    name: str
    created: datetime
    service: str | None
    expires: datetime | None
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what to what, from which address, when. A merged event happened ``count`` times until ``last``."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    source: str
    detail: Mapping[str, Any]
    count: int = 1
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Events, newest first. ``next`` is the value of ``before`` for older ones, or ``None``."""

    events: tuple[AuditEvent, ...]
    next: int | None


def read_signed_up(answer: Any) -> SignedUp:
    """Read the answer to a sign-up."""
    return SignedUp(text(answer, "handle"), _secret(answer, "token", "adm"))


def read_identity(answer: Any) -> Identity:
    """Read what a token is."""
    return Identity(
        text(answer, "kind"),
        text(answer, "handle"),
        _maybe(answer, "service", text),
        _maybe(answer, "id", text),
        _maybe(answer, "name", text),
        _maybe(answer, "expires", _time),
    )


def read_page(answer: Any, read: Callable[[Any], tuple[_T, ...]]) -> Page[_T]:
    """Read a page of a list; ``read`` reads its entries."""
    return Page(read(answer), _maybe(answer, "next", text))


def read_services(answer: Any) -> tuple[ServiceInfo, ...]:
    """Read a list of services."""
    return tuple(map(read_service, answer["services"]))


def read_created_service(answer: Any) -> CreatedService:
    """Read a new service."""
    pins = _maybe(answer, "pins", flag) or False
    return CreatedService(text(answer, "service"), text(answer, "access"), pins, _secret(answer, "token", "svc"))


def read_rotated_service(answer: Any) -> RotatedService:
    """Read a service's new token."""
    until = _maybe(answer, "old_until", _time)
    return RotatedService(text(answer, "service"), text(answer, "id"), until, _secret(answer, "token", "svc"))


def read_hosts(answer: Any) -> tuple[HostInfo, ...]:
    """Read a list of live hosts."""
    return tuple(map(_host, answer["hosts"]))


def _host(answer: Any) -> HostInfo:
    labels = {str(key): str(value) for key, value in answer["labels"].items()}
    return HostInfo(
        text(answer, "host"),
        _time(answer, "since"),
        labels,
        count(answer, "streams"),
        _maybe(answer, "source", text),
        _maybe(answer, "token", _token_name),
    )


def read_clients(answer: Any) -> tuple[ClientInfo, ...]:
    """Read a list of connected agents."""
    return tuple(map(_client, answer["clients"]))


def _client(answer: Any) -> ClientInfo:
    return ClientInfo(
        text(answer, "agent"),
        text(answer, "source"),
        _time(answer, "since"),
        count(answer, "streams"),
        _maybe(answer, "token", _token_name),
    )


def read_invites(answer: Any) -> tuple[InviteInfo, ...]:
    """Read a list of invitations."""
    return tuple(InviteInfo(**_invite(entry)) for entry in answer["invites"])


def read_created_invite(answer: Any) -> CreatedInvite:
    """Read a new invitation."""
    return CreatedInvite(**_invite(answer), service=text(answer, "service"), code=_secret(answer, "code", "inv"))


def _invite(answer: Any) -> dict[str, Any]:
    return {
        "id": text(answer, "id"),
        "purpose": text(answer, "for"),
        "name": text(answer, "name"),
        "uses": count(answer, "uses"),
        "used": count(answer, "used"),
        "created": _time(answer, "created"),
        "expires": _time(answer, "expires"),
        "revoked": _maybe(answer, "revoked", flag) or False,
    }


def read_accepted_invite(answer: Any) -> AcceptedInvite:
    """Read the result of an invitation."""
    kind = text(answer, "kind")
    if kind not in {"svc", "cli"}:
        raise ValueError("kind")
    return AcceptedInvite(
        text(answer, "service"),
        text(answer, "for"),
        kind,
        text(answer, "id"),
        text(answer, "name"),
        _secret(answer, "token", kind),
    )


def read_tokens(answer: Any) -> tuple[TokenInfo, ...]:
    """Read a list of tokens."""
    return tuple(map(_token, answer["tokens"]))


def _token(answer: Any) -> TokenInfo:
    return TokenInfo(
        text(answer, "id"),
        text(answer, "kind"),
        text(answer, "name"),
        _time(answer, "created"),
        _maybe(answer, "service", text),
        _maybe(answer, "expires", _time),
        _maybe(answer, "last_used", _time),
        _maybe(answer, "invite", text),
        _maybe(answer, "revoked", flag) or False,
    )


def read_created_token(answer: Any) -> CreatedToken:
    """Read a new token."""
    kind = text(answer, "kind")
    return CreatedToken(
        text(answer, "id"),
        kind,
        text(answer, "name"),
        _time(answer, "created"),
        _maybe(answer, "service", text),
        _maybe(answer, "expires", _time),
        _secret(answer, "token", kind),
    )


def read_audit_page(answer: Any) -> AuditPage:
    """Read a page of the audit log."""
    return AuditPage(tuple(map(_event, answer["events"])), _maybe(answer, "next", count))


def _event(answer: Any) -> AuditEvent:
    detail = {str(key): value for key, value in (answer.get("detail") or {}).items()}
    return AuditEvent(
        count(answer, "id"),
        _time(answer, "at"),
        text(answer, "actor"),
        text(answer, "action"),
        text(answer, "subject"),
        text(answer, "source"),
        detail,
        _maybe(answer, "count", count) or 1,
        _maybe(answer, "last", _time),
    )


def _maybe(answer: Any, key: str, read: Callable[[Any, str], _T]) -> _T | None:
    return None if answer.get(key) is None else read(answer, key)


def _time(answer: Any, key: str) -> datetime:
    moment = datetime.fromisoformat(text(answer, key))
    if moment.tzinfo is None:
        raise ValueError(key)
    return moment.astimezone(UTC)


def _token_name(answer: Any, key: str) -> TokenName:
    return TokenName(text(answer[key], "id"), text(answer[key], "name"))


def _secret(answer: Any, key: str, kind: str) -> str:
    token = text(answer, key)
    if token_kind(token) != kind:
        raise ValueError(key)
    return token
