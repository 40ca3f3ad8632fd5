"""Tokens that an admin creates beside those that come with a handle or a service."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import (
    WHOLE,
    Answer,
    Body,
    Given,
    Instant,
    Name,
    Title,
    instant,
    instant_if,
    is_id,
    seconds_from_now,
)
from kdispatch_relay.api.pages import NEXT, NewestFirst, page_of
from kdispatch_relay.api.route import ApiRoute, Example, Section
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.store.records import NewToken, TokenRecord
from kdispatch_relay.store.services import ENDED_TOKENS

__all__ = ["ROUTES"]

_KINDS: Final = {"admin": "adm", "host": "svc", "connect": "cli"}
_LONGEST: Final = 10 * 365 * 24 * 3600
_ENDED: Final = f"ended ones for 30 days, at most the last {ENDED_TOKENS:,} of them"


class TokenWanted(Body):
    """What an admin sends to create a token."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {"for": {"const": "admin"}}, "not": {"required": ["service"]}},
                {"properties": {"for": {"enum": ["host", "connect"]}}, "required": ["service"]},
            ]
        }
    )

    name: Title = Field(description="its name, for people")
    purpose: Literal["admin", "host", "connect"] = Field(
        alias="for", description="`admin`: all that the admin may do. `host` or `connect`: only that, to one service"
    )
    service: Given[Name] = Field(default=None, description="the name of the service, for `host` and `connect` only")
    expires: Given[Annotated[int, Field(ge=60, le=_LONGEST), WHOLE]] = Field(
        default=None, description="seconds after which it expires; without it never"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.purpose == "admin") != (self.service is None):
            raise ValueError("a token to host or connect needs a service, and an admin's token has none")
        return self


class TokenCreated(Answer):
    """The only answer that ever holds this token."""

    id: str = Field(description="the token's id")
    kind: str = Field(description="`adm`, `svc` to host, `cli` to connect")
    name: str = Field(description="its name, for people")
    service: str | None = Field(default=None, description="the service that it is for, as `handle/name`")
    created: Instant = Field(description="when it was created (RFC 3339, UTC)")
    expires: Instant | None = Field(default=None, description="when it expires, if it does")
    token: str = Field(description="the token")


class TokenListed(Answer):
    """A token's record, without its secret."""

    id: str = Field(description="the token's id")
    kind: str = Field(description="`adm`, `svc` to host, `cli` to connect")
    name: str = Field(description="its name, for people")
    service: str | None = Field(default=None, description="the service that it is for, as `handle/name`")
    created: Instant = Field(description="when it was created (RFC 3339, UTC)")
    expires: Instant | None = Field(default=None, description="when it expires, if it does")
    last_used: Instant | None = Field(default=None, description="when it was last used, to a minute")
    invite: str | None = Field(default=None, description="the id of the invitation that it came from")
    revoked: bool | None = Field(default=None, description="`true` if it was revoked")


class TokenList(Answer):
    """Tokens of one admin."""

    tokens: list[TokenListed] = Field(description=f"a page of them, the newest first; {_ENDED}")
    next: str | None = Field(default=None, description=NEXT)


class TokensOf(NewestFirst):
    """Which tokens to return."""

    service: Given[Name] = Field(default=None, description="only those of the service with this name")


async def create_token(call: Call) -> TokenCreated:
    """Create a token for the caller's own account."""
    owner = await call.authority.admin(call.token, "token.create")
    body = await call.body(TokenWanted)
    kind = _KINDS[body.purpose]
    token, new = NewToken.made(kind, body.name, seconds_from_now(body.expires))
    made = await call.repository.tokens.create(owner, new, kind=kind, name=body.service, source=call.source)
    if made is None:
        raise KdispatchError("unknown_service")
    return TokenCreated(
        id=made.id,
        kind=kind,
        name=made.name,
        service=made.service,
        created=instant(made.created),
        expires=instant_if(made.expires),
        token=token,
    )


async def list_tokens(call: Call) -> TokenList:
    """List the tokens of the caller's own account."""
    owner = await call.authority.admin(call.token, "token.list")
    wanted = call.query(TokensOf)
    found = await call.repository.tokens.of(owner, wanted.service, after=wanted.after, limit=wanted.limit + 1)
    tokens, more = page_of(found, wanted.limit, lambda token: f"{token.created}-{token.id}")
    return TokenList(tokens=[_listed(token) for token in tokens], next=more)


async def revoke_token(call: Call) -> None:
    """Revoke a token of the caller's own account; what rests on it ends at once."""
    owner = await call.authority.admin(call.token, "token.revoke")
    token_id = call.path["token"]
    if not (is_id(token_id) and await call.repository.tokens.revoke(owner, token_id, source=call.source)):
        raise KdispatchError("unknown_token")


def _listed(token: TokenRecord) -> TokenListed:
    return TokenListed(
        id=token.id,
        kind=token.kind,
        name=token.name,
        service=token.service,
        created=instant(token.created),
        expires=instant_if(token.expires),
        last_used=instant_if(token.last_used),
        invite=token.invite,
        revoked=True if token.revoked else None,
    )


_OTHERS: Final = {"not_permitted": "not an admin's token"}
_WHEN: Final = "2026-01-31T09:30:00Z"

ROUTES: Final = (
    ApiRoute(
        method="POST",
        path=f"{PREFIX}/tokens",
        name="create_token",
        handler=create_token,
        section=Section.TOKENS,
        who="token.create",
        does="creates a token",
        text="""\
Creates one more token: for the admin itself, or to host or connect to one of its services. The answer, status 201, is
the only one that ever shows it.""",
        body=TokenWanted,
        status=HTTPStatus.CREATED,
        answer=TokenCreated,
        errors={"bad_name": "", **_OTHERS, "unknown_service": "", "quota_exceeded": ""},
        example=Example(
            shows="admin",
            body={"name": "laptop", "for": "connect", "service": "web", "expires": 2592000},
            answer={
                "id": "6f1c09d2a8b35e67",
                "kind": "cli",
                "name": "laptop",
                "service": "ann/web",
                "created": _WHEN,
                "expires": _WHEN,
                "token": "cli_...",
            },
        ),
    ),
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/tokens",
        name="list_tokens",
        handler=list_tokens,
        section=Section.TOKENS,
        who="token.list",
        does="lists the admin's own tokens",
        text="Lists the admin's tokens, those of its services among them, the newest first.",
        query=TokensOf,
        answer=TokenList,
        errors={"bad_name": "", **_OTHERS},
    ),
    ApiRoute(
        method="DELETE",
        path=f"{PREFIX}/tokens/{{token}}",
        name="revoke_token",
        handler=revoke_token,
        section=Section.TOKENS,
        who="token.revoke",
        does="revokes a token",
        text="""\
Revokes one of the admin's tokens. The answer, status 204, is empty. Hosts and connections that rest on it end within
two seconds (`revoked`), at every relay process. From now on the relay answers it with `revoked`.""",
        status=HTTPStatus.NO_CONTENT,
        errors={
            **_OTHERS,
            "unknown_token": "no such token, another admin's, or revoked already",
            "last_token": "",
        },
    ),
)
