"""What the store returns and takes: plain values, no rows and no open transaction. Times are unix seconds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from kdispatch_protocol.tokens import SECRET_BYTES, format_token, token_digest, token_id

__all__ = [
    "QUOTAS",
    "AdminRecord",
    "AuditRecord",
    "InviteRecord",
    "NewToken",
    "Quotas",
    "ServiceRecord",
    "TokenIdentity",
    "TokenRecord",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What an admin may have: ``hosts`` and ``streams`` at one time, at one relay process."""

    services: int = 100
    tokens: int = 1_000  # beside each service's own
    hosts: int = 2_000
    streams: int = 20_000


#: The names of the quotas.
QUOTAS: Final = tuple(item.name for item in fields(Quotas))


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A registered service: ``service`` is ``handle/name``, ``access`` is ``public`` or ``token``.

    ``pins``: whether clients may choose a host. ``quotas`` are its owner's.
    """

    service: str
    access: str
    pins: bool = False
    suspended: bool = False
    quotas: Quotas = field(default=Quotas(), compare=False)


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """What a token stands for. ``kind`` is its prefix; ``service`` is set for ``svc`` and ``cli`` tokens only.

    An expired or revoked token, or one of a suspended admin, has an identity too, so that its holder can get the
    reason.
    """

    kind: str
    admin_id: int
    handle: str
    service: ServiceRecord | None = None
    id: str = ""
    name: str = ""
    expires: int | None = None
    revoked: bool = False
    suspended: bool = False

    @property
    def actor(self) -> str:
        """Its name in the audit."""
        return f"{self.kind} {self.id} {self.name}"


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token, or an invitation's code, that was created but not stored yet."""

    digest: bytes
    name: str
    expires: int | None = None

    @classmethod
    def made(cls, kind: str, name: str, expires: int | None = None) -> tuple[str, Self]:
        """Create a token of ``kind``: its text, which is shown once, and the part that is stored."""
        text = format_token(kind, secrets.token_bytes(SECRET_BYTES))
        return text, cls(token_digest(text), name, expires)

    @property
    def id(self) -> str:
        """The public id."""
        return token_id(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A token as its admin sees it. ``invite`` is the id of the invitation that it came from."""

    id: str
    kind: str
    name: str
    service: str | None
    created: int
    expires: int | None
    last_used: int | None
    revoked: bool
    invite: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRecord:
    """An invitation. ``purpose`` is ``host``, ``connect`` or ``sign-up``; the last has no ``service``."""

    id: str
    purpose: str
    service: str | None
    name: str
    uses: int
    used: int
    created: int
    expires: int
    revoked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRecord:
    """An account as the relay's operator sees it. ``own`` names the quotas that were set for this account."""

    handle: str
    created: int
    suspended: int | None
    suspended_for: str | None
    services: int
    tokens: int
    quotas: Quotas
    own: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """Who did what to what, from where, when. ``id`` is 0 until it is stored.

    A merged event happened ``count`` times, from ``at`` until ``last``.
    """

    actor: str
    action: str
    subject: str
    source: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    at: int = 0
    count: int = 1
    last: int = 0
