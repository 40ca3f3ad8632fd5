"""Invitations: codes that users exchange for a token of their own."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, Literal

from pydantic import AliasChoices, Field

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import (
    Answer,
    Body,
    Flag,
    Given,
    Instant,
    Title,
    Whole,
    instant,
    is_id,
    seconds_from_now,
)
from kdispatch_relay.api.pages import NEXT, NewestFirst, page_of
from kdispatch_relay.api.route import ApiRoute, Example, Section
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.store.invites import ENDED_INVITES, KINDS
from kdispatch_relay.store.records import NewToken

__all__ = ["ROUTES"]

_ENDED: Final = (
    f"of those that can't be accepted any more, the last {ENDED_INVITES}, for 30 days, and those with valid tokens"
)
_FOR: Final = AliasChoices("for", "purpose")  # on the wire it is "for", a keyword in Python


class InviteWanted(Body):
    """What an owner sends to invite users to a service."""

    purpose: Literal["host", "connect"] = Field(alias="for", description="what its tokens may do")
    uses: Whole = Field(default=1, ge=1, le=10_000, description="how often it may be accepted")
    expires: Whole = Field(default=24 * 3600, ge=60, le=365 * 24 * 3600, description="seconds after which it expires")
    name: Title = Field(default="invitation", description="its name, for people")


class InviteCreated(Answer):
    """The only answer that ever holds this code."""

    id: str = Field(description="the invitation's id")
    service: str = Field(description="the service, as `handle/name`")
    purpose: str = Field(validation_alias=_FOR, serialization_alias="for", description="`host` or `connect`")
    name: str = Field(description="its name, for people")
    uses: int = Field(description="how often it may be accepted")
    used: int = Field(description="how often it was accepted")
    created: Instant = Field(description="when it was created (RFC 3339, UTC)")
    expires: Instant = Field(description="when it expires")
    code: str = Field(description="the code, `inv_...`")


class InviteSeen(Answer):
    """An invitation, without its code."""

    id: str = Field(description="the invitation's id")
    purpose: str = Field(validation_alias=_FOR, serialization_alias="for", description="`host` or `connect`")
    name: str = Field(description="its name, for people")
    uses: int = Field(description="how often it may be accepted")
    used: int = Field(description="how often it was accepted")
    created: Instant = Field(description="when it was created (RFC 3339, UTC)")
    expires: Instant = Field(description="when it expires or expired")
    revoked: bool | None = Field(default=None, description="`true` if it was revoked")


class InviteList(Answer):
    """The invitations to one service."""

    service: str = Field(description="the service, as `handle/name`")
    invites: list[InviteSeen] = Field(description=f"a page of them, the newest first; {_ENDED}")
    next: str | None = Field(default=None, description=NEXT)


class InviteEnd(Body):
    """How to revoke an invitation."""

    tokens: Flag = Field(default=False, description="`true`: revoke the tokens that came from it as well")


class Acceptance(Body):
    """What a user sends to accept an invitation."""

    name: Given[Title] = Field(default=None, description="the token's name, for people; without it the invitation's")


class Accepted(Answer):
    """The only answer that ever holds this token."""

    service: str = Field(description="the service, as `handle/name`")
    purpose: str = Field(validation_alias=_FOR, serialization_alias="for", description="`host` or `connect`")
    kind: str = Field(description="`svc` to host, `cli` to connect")
    id: str = Field(description="the token's id")
    name: str = Field(description="its name, for people")
    token: str = Field(description="the token")


async def create_invite(call: Call) -> InviteCreated:
    """Create an invitation to one of the caller's services."""
    owner = await call.authority.owner(call.token, call.path["handle"], "invite.create")
    name = check_name(call.path["name"])
    body = await call.body(InviteWanted)
    code, new = NewToken.made("inv", body.name, seconds_from_now(body.expires))
    made = await call.repository.invites.create(
        owner, name, new, purpose=body.purpose, uses=body.uses, source=call.source
    )
    if made is None:
        raise KdispatchError("unknown_service")
    return InviteCreated(
        id=made.id,
        service=call.service,
        purpose=made.purpose,
        name=made.name,
        uses=made.uses,
        used=0,
        created=instant(made.created),
        expires=instant(made.expires),
        code=code,
    )


async def list_invites(call: Call) -> InviteList:
    """List the invitations to one of the caller's services."""
    owner = await call.authority.owner(call.token, call.path["handle"], "invite.list")
    name = check_name(call.path["name"])
    if await call.repository.service(owner.handle, name) is None:
        raise KdispatchError("unknown_service")
    wanted = call.query(NewestFirst)
    found = await call.repository.invites.of(owner, name, after=wanted.after, limit=wanted.limit + 1)
    page, more = page_of(found, wanted.limit, lambda invite: f"{invite.created}-{invite.id}")
    invites = [
        InviteSeen(
            id=invite.id,
            purpose=invite.purpose,
            name=invite.name,
            uses=invite.uses,
            used=invite.used,
            created=instant(invite.created),
            expires=instant(invite.expires),
            revoked=True if invite.revoked else None,
        )
        for invite in page
    ]
    return InviteList(service=call.service, invites=invites, next=more)


async def revoke_invite(call: Call) -> None:
    """Revoke an invitation, and on request the tokens that came from it."""
    owner = await call.authority.owner(call.token, call.path["handle"], "invite.revoke")
    name = check_name(call.path["name"])
    tokens, invite_id = call.query(InviteEnd).tokens, call.path["invite"]
    if not is_id(invite_id) or not await call.repository.invites.revoke(
        owner, name, invite_id, tokens=tokens, source=call.source
    ):
        raise KdispatchError("unknown_invite")


async def accept_invite(call: Call) -> Accepted:
    """Exchange a code for a new token."""
    invite = await call.authority.invitation(call.token)
    if invite.service is None:
        raise KdispatchError("token_refused", "This is a sign-up code, not an invitation.")
    body = await call.body(Acceptance)
    kind = KINDS[invite.purpose]
    token, new = NewToken.made(kind, body.name or invite.name)
    await call.repository.invites.accept(invite, new, source=call.source)
    return Accepted(service=invite.service, purpose=invite.purpose, kind=kind, id=new.id, name=new.name, token=token)


_OTHERS: Final = {"not_permitted": "not its owner; decided without looking up the service"}
_WHEN: Final = "2026-01-31T09:30:00Z"
_SHOWN: Final = {
    "id": "6f1c09d2a8b35e67",
    "for": "connect",
    "name": "support",
    "uses": 5,
    "used": 0,
    "created": _WHEN,
    "expires": _WHEN,
}
_OF_SERVICE: Final = f"{PREFIX}/services/{{handle}}/{{name}}/invites"

ROUTES: Final = (
    ApiRoute(
        method="POST",
        path=_OF_SERVICE,
        name="create_invite",
        handler=create_invite,
        section=Section.INVITES,
        who="invite.create",
        does="creates an invitation to host or connect to a service",
        text="""\
Creates a code that can be exchanged `uses` times for a token to host or connect to the service. The answer, status
201, is the only one that ever shows the code.""",
        body=InviteWanted,
        status=HTTPStatus.CREATED,
        answer=InviteCreated,
        errors={**_OTHERS, "unknown_service": "", "quota_exceeded": ""},
        example=Example(
            path=f"{PREFIX}/services/ann/web/invites",
            shows="admin",
            body={"for": "connect", "uses": 5, "expires": 3600, "name": "support"},
            answer={**_SHOWN, "service": "ann/web", "code": "inv_..."},
            keeps="invite",
            kept="code",
        ),
    ),
    ApiRoute(
        method="GET",
        path=_OF_SERVICE,
        name="list_invites",
        handler=list_invites,
        section=Section.INVITES,
        who="invite.list",
        does="lists a service's invitations",
        text="Lists the invitations to the service, the newest first.",
        query=NewestFirst,
        answer=InviteList,
        errors={**_OTHERS, "unknown_service": ""},
        example=Example(
            path=f"{PREFIX}/services/ann/web/invites",
            shows="admin",
            answer={"service": "ann/web", "invites": [_SHOWN]},
        ),
    ),
    ApiRoute(
        method="DELETE",
        path=f"{_OF_SERVICE}/{{invite}}",
        name="revoke_invite",
        handler=revoke_invite,
        section=Section.INVITES,
        who="invite.revoke",
        does="revokes an invitation",
        text="""\
Ends an invitation. The answer, status 204, is empty. The tokens that came from it stay valid, unless `tokens` is
`true`; then what rests on them ends within two seconds (`revoked`).""",
        query=InviteEnd,
        status=HTTPStatus.NO_CONTENT,
        errors={**_OTHERS, "unknown_invite": "no such invitation to this service, or no such service"},
    ),
    ApiRoute(
        method="POST",
        path=f"{PREFIX}/invites/accept",
        name="accept_invite",
        handler=accept_invite,
        section=Section.INVITES,
        who="invite.accept",
        does="exchanges an invitation's code for a token",
        text="""\
Exchanges the code, which stands in `Authorization` like a token, for a new token. If many do so at once, only as many
get one as uses are left. The answer, status 201, is the only one that ever shows the token.""",
        body=Acceptance,
        status=HTTPStatus.CREATED,
        answer=Accepted,
        errors={"token_refused": "not an invitation's code", "invite_spent": "", "quota_exceeded": ""},
        example=Example(
            shows="invite",
            body={"name": "laptop of bob"},
            answer={
                "service": "ann/web",
                "for": "connect",
                "kind": "cli",
                "id": "6f1c09d2a8b35e67",
                "name": "laptop of bob",
                "token": "cli_...",
            },
        ),
    ),
)
