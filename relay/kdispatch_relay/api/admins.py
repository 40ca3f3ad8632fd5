"""Admins: accounts, each with its own handle; and what a token stands for."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from pydantic import Field

from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer, Body, Instant, Name, instant_if
from kdispatch_relay.api.route import ApiRoute, Example, Section
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.store.records import NewToken

__all__ = ["ROUTES"]


class NewAdmin(Body):
    """What a client sends to become an admin."""

    handle: Name = Field(description="the wanted handle")


class AdminCreated(Answer):
    """The only answer that ever holds this token."""

    handle: str = Field(description="the handle")
    token: str = Field(description="the admin's token, `adm_...`")


class WhoAmI(Answer):
    """What the shown token stands for."""

    kind: str = Field(description="`adm` of an admin, `svc` to host a service, `cli` to connect to one")
    handle: str = Field(description="the admin, or the service's owner")
    service: str | None = Field(default=None, description="the service that it is for, if it is for one")
    id: str = Field(description="the token's id")
    name: str = Field(description="its name, for people")
    expires: Instant | None = Field(default=None, description="when it expires, if it does")


async def create_admin(call: Call) -> AdminCreated:
    """Take a free handle."""
    body = await call.body(NewAdmin)
    code = await call.authority.sign_up(call.token)
    token, new = NewToken.made("adm", "sign-up")
    await call.repository.accounts.create(body.handle, new, source=call.source, code=code)
    return AdminCreated(handle=body.handle, token=token)


async def who_am_i(call: Call) -> WhoAmI:
    """Tell what a token stands for."""
    identity = await call.authority.identify(call.token)
    service = identity.service.service if identity.service is not None else None
    return WhoAmI(
        kind=identity.kind,
        handle=identity.handle,
        service=service,
        id=identity.id,
        name=identity.name,
        expires=instant_if(identity.expires),
    )


ROUTES: Final = (
    ApiRoute(
        method="POST",
        path=f"{PREFIX}/admins",
        name="create_admin",
        handler=create_admin,
        section=Section.ADMINS,
        who="sign_up",
        does="takes a handle, gives its admin a token",
        text="""\
Becomes an admin. The handle must be free. The answer, status 201, is the only one that ever shows the token:
the relay keeps no copy, only a digest.

Some relays accept new admins only with a code from their operator, an `inv_` token in `Authorization`. Where sign-up is
open to everyone, a token there is ignored.""",
        body=NewAdmin,
        status=HTTPStatus.CREATED,
        answer=AdminCreated,
        errors={
            "bad_name": "",
            "handle_taken": "",
            "token_refused": "a code is needed and missing, or the relay does not know it",
            "invite_spent": "",
            "not_permitted": "sign-up is closed, or the code is an invitation to a service",
        },
        example=Example(body={"handle": "ann"}, answer={"handle": "ann", "token": "adm_..."}, keeps="admin"),
    ),
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/whoami",
        name="who_am_i",
        handler=who_am_i,
        section=Section.ADMINS,
        who="whoami",
        does="says what a token stands for",
        text="Says what the token in `Authorization` stands for.",
        answer=WhoAmI,
        example=Example(
            shows="admin", answer={"kind": "adm", "handle": "ann", "id": "6f1c09d2a8b35e67", "name": "sign-up"}
        ),
    ),
)
