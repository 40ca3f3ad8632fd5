"""What a route is: stated once as a value, from which the router, OpenAPI and docs/rest-api.md are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from kdispatch_protocol.errors import CODES
from kdispatch_protocol.names import NAME_PATTERN
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer, Body

__all__ = ["GENERAL", "NEEDS", "PATH_PARAMETERS", "Example", "Handler", "Route", "Section", "Token"]

#: Gives the answer that the route states, or one of its own where JSON is not what is answered.
Handler = Callable[[Call], Awaitable[Answer | web.StreamResponse | None]]


class Token(Enum):
    """Whether a token is to be shown."""

    NONE = "none"
    MAY = "may"
    MUST = "must"


class Section(Enum):
    """Where a route stands in the documents."""

    ADMINS = "Admins"
    SERVICES = "Services"
    TOKENS = "Tokens"
    INVITES = "Invitations"
    AUDIT = "Audit"
    TUNNEL = "The tunnel"
    OPERATOR = "For the operator"
    HEALTH = "Health"
    DESCRIPTION = "This API, for programs"


#: What each action needs: whether a token, and which, as the page's table tells it.
NEEDS: Final[Mapping[str, tuple[Token, str]]] = {
    "anybody": (Token.NONE, "-"),
    "sign_up": (Token.MAY, "see there"),
    "whoami": (Token.MUST, "any token"),
    "service.create": (Token.MUST, "admin's token"),
    "service.list": (Token.MUST, "admin's token"),
    "service.read": (Token.MAY, "see there"),
    "service.clients": (Token.MUST, "owner's token"),
    "service.change": (Token.MUST, "owner's token"),
    "service.rotate": (Token.MUST, "owner's token"),
    "service.delete": (Token.MUST, "owner's token"),
    "invite.create": (Token.MUST, "owner's token"),
    "invite.list": (Token.MUST, "owner's token"),
    "invite.revoke": (Token.MUST, "owner's token"),
    "invite.accept": (Token.MUST, "invitation's code"),
    "token.create": (Token.MUST, "admin's token"),
    "token.list": (Token.MUST, "admin's token"),
    "token.revoke": (Token.MUST, "admin's token"),
    "host.withdraw": (Token.MUST, "see there"),
    "audit.read": (Token.MUST, "admin's token"),
    "relay.state": (Token.MAY, "see there"),
}

#: What stands between the braces of a path: how it looks, and what it is.
PATH_PARAMETERS: Final[Mapping[str, tuple[str, str]]] = {
    "handle": (f"^{NAME_PATTERN}$", "The handle of the service's owner."),
    "name": (f"^{NAME_PATTERN}$", "The service's name."),
    "host": ("^[0-9a-f]{32}$", "The host's identifier."),
    "token": ("^[0-9a-f]{16}$", "The token's id."),
    "invite": ("^[0-9a-f]{16}$", "The invitation's id."),
}

#: What has nothing to do with the route: the door's refusals, the relay's own failures.
GENERAL: Final = ("not_permitted", "rate_limited", "misdirected", "internal_error", "busy", "storage_unavailable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One request and its answer. The page's commands are made of it, and run by a test."""

    path: str = ""  # where that of the route has parameters, or with a query
    shows: str = ""  # the token that a former example has kept
    body: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    keeps: str = ""  # the name under which the answer's token is kept
    kept: str = "token"  # the field of the answer that it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one address.

    ``who`` is the action in the table of who may do what, and ``errors`` are the codes that only this route has, or
    for which it has a reason of its own, in words.
    """

    method: str
    path: str
    name: str  # OpenAPI's operation id
    handler: Handler
    section: Section
    who: str
    does: str  # what it does, in a few words
    text: str  # the same in full, in Markdown
    query: type[Body] | None = None
    body: type[Body] | None = None
    status: int = HTTPStatus.OK
    answer: type[Answer] | None = None
    errors: Mapping[str, str] = field(default_factory=dict)
    general: tuple[str, ...] = GENERAL
    head: bool = True
    any_query: bool = False  # what stands behind the '?' is not looked at
    example: Example | None = None

    @property
    def label(self) -> str:
        """As it is called in the documents."""
        return f"{self.method} {self.path}"

    @property
    def token(self) -> Token:
        """Whether it wants to see one."""
        return NEEDS[self.who][0]

    @property
    def parameters(self) -> list[str]:
        """The names between the braces of its path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    @property
    def own_errors(self) -> dict[str, str]:
        """What it can refuse by code, as the codes' table orders them, with the reason where one is told."""
        codes = set(self.errors)
        if "name" in self.parameters:
            codes.add("bad_name")
        if self.body is not None or self.query is not None:
            codes.add("bad_request")
        if self.token is not Token.NONE:
            codes.add("token_refused")
            if "storage_unavailable" in self.general:  # what is not looked up there can't have been revoked
                codes.add("revoked")
        return {code: self.errors.get(code, "") for code in CODES if code in codes}

    @property
    def problems(self) -> dict[int, list[str]]:
        """Everything that it can answer but what it is for: codes by HTTP status."""
        found: dict[int, list[str]] = {HTTPStatus.BAD_REQUEST: ["bad_request"]}
        codes = {*self.own_errors, *self.general}
        if not self.any_query:
            codes.add("bad_request")
        if self.body is not None:
            codes.add("too_large")
            found |= {HTTPStatus.REQUEST_TIMEOUT: ["bad_request"], HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ["bad_request"]}
        for code in CODES.values():
            if code.name in codes:
                assert code.http is not None
                found.setdefault(code.http, []).append(code.name)
        return dict(sorted(found.items()))
