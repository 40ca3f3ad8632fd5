"""Routes, each defined once as a value; the router, OpenAPI and docs/rest-api.md are made from them."""

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

__all__ = ["GENERAL", "NEEDS", "PATH_PARAMETERS", "ApiRoute", "BearerToken", "Example", "Handler", "Section"]

#: Returns the answer that the route declares, or a response of its own if the answer is not JSON.
Handler = Callable[[Call], Awaitable[Answer | web.StreamResponse | None]]


class BearerToken(Enum):
    """Whether a route needs a token."""

    NONE = "none"
    MAY = "may"
    MUST = "must"


class Section(Enum):
    """The section of the documents that a route belongs to."""

    ADMINS = "Admins"
    SERVICES = "Services"
    TOKENS = "Tokens"
    INVITES = "Invitations"
    AUDIT = "Audit"
    TUNNEL = "The tunnel"
    OPERATOR = "For the operator"
    HEALTH = "Health"
    DESCRIPTION = "This API, for programs"


#: Whether each action needs a token, and which one, as in the page's table.
NEEDS: Final[Mapping[str, tuple[BearerToken, str]]] = {
    "anybody": (BearerToken.NONE, "-"),
    "sign_up": (BearerToken.MAY, "see the route"),
    "whoami": (BearerToken.MUST, "any token"),
    "service.create": (BearerToken.MUST, "admin's token"),
    "service.list": (BearerToken.MUST, "admin's token"),
    "service.read": (BearerToken.MAY, "see the route"),
    "service.clients": (BearerToken.MUST, "owner's token"),
    "service.change": (BearerToken.MUST, "owner's token"),
    "service.rotate": (BearerToken.MUST, "owner's token"),
    "service.delete": (BearerToken.MUST, "owner's token"),
    "invite.create": (BearerToken.MUST, "owner's token"),
    "invite.list": (BearerToken.MUST, "owner's token"),
    "invite.revoke": (BearerToken.MUST, "owner's token"),
    "invite.accept": (BearerToken.MUST, "invitation's code"),
    "token.create": (BearerToken.MUST, "admin's token"),
    "token.list": (BearerToken.MUST, "admin's token"),
    "token.revoke": (BearerToken.MUST, "admin's token"),
    "host.withdraw": (BearerToken.MUST, "see the route"),
    "audit.read": (BearerToken.MUST, "admin's token"),
    "relay.state": (BearerToken.MAY, "see the route"),
}

#: The parameters in paths: pattern, and meaning.
PATH_PARAMETERS: Final[Mapping[str, tuple[str, str]]] = {
    "handle": (f"^{NAME_PATTERN}$", "The handle of the service's owner."),
    "name": (f"^{NAME_PATTERN}$", "The service's name."),
    "host": ("^[0-9a-f]{32}$", "The host's identifier."),
    "token": ("^[0-9a-f]{16}$", "The token's id."),
    "invite": ("^[0-9a-f]{16}$", "The invitation's id."),
}

#: Errors that do not depend on the route: refusals at the door, and failures of the relay.
GENERAL: Final = ("not_permitted", "rate_limited", "misdirected", "internal_error", "busy", "storage_unavailable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One request and its answer. The page's commands are made from it, and a test runs them."""

    path: str = ""  # if the route's path has parameters, or to add a query
    shows: str = ""  # the token that an earlier example has kept
    body: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    keeps: str = ""  # the name under which the answer's token is kept
    kept: str = "token"  # the field of the answer that has it


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRoute:
    """One method of one address.

    ``who`` is the action in the table of rights. ``errors`` are the codes that only this route has, or for which it has
    its own reason, in words.
    """

    method: str
    path: str
    name: str  # OpenAPI's operation id
    handler: Handler
    section: Section
    who: str
    does: str  # what it does, in a few words
    text: str  # the full description, in Markdown
    query: type[Body] | None = None
    body: type[Body] | None = None
    status: int = HTTPStatus.OK
    answer: type[Answer] | None = None
    errors: Mapping[str, str] = field(default_factory=dict)
    general: tuple[str, ...] = GENERAL
    head: bool = True
    any_query: bool = False  # the query is ignored
    example: Example | None = None

    @property
    def label(self) -> str:
        """Its name in the documents."""
        return f"{self.method} {self.path}"

    @property
    def token(self) -> BearerToken:
        """Whether it needs a token."""
        return NEEDS[self.who][0]

    @property
    def parameters(self) -> list[str]:
        """The parameters of its path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    @property
    def own_errors(self) -> dict[str, str]:
        """The codes of its own refusals, in the order of the table of codes, each with its reason if there is one."""
        codes = set(self.errors)
        if "name" in self.parameters:
            codes.add("bad_name")
        if self.body is not None or self.query is not None:
            codes.add("bad_request")
        if self.token is not BearerToken.NONE:
            codes.add("token_refused")
            if "storage_unavailable" in self.general:  # without the store, no token can be revoked
                codes.add("revoked")
        return {code: self.errors.get(code, "") for code in CODES if code in codes}

    @property
    def problems(self) -> dict[int, list[str]]:
        """All its error answers: codes by HTTP status."""
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
