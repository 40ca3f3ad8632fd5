"""Admins: accounts, each with a handle of its own; and who one is."""

from __future__ import annotations

import secrets

from aiohttp import web

from kdispatch_protocol.tokens import SECRET_BYTES, format_token, token_digest
from kdispatch_relay.api.exchange import PREFIX, Body, Name, answer, bearer, read_body
from kdispatch_relay.api.keys import AUTHORITY, REPOSITORY
from kdispatch_relay.http_connection import SOURCE
from kdispatch_relay.store.records import NewToken

__all__ = ["ROUTES"]


class NewAdmin(Body):
    """What one sends to become an admin."""

    handle: Name


class AdminCreated(Body):
    """The only answer that ever holds this token."""

    handle: str
    token: str


class WhoAmI(Body):
    """Whom the shown token stands for; ``service`` only for a service's token."""

    kind: str
    handle: str
    service: str | None = None


async def create_admin(request: web.Request) -> web.Response:
    """Take a handle that is free."""
    body = await read_body(request, NewAdmin)
    token = format_token("adm", secrets.token_bytes(SECRET_BYTES))
    new = NewToken(token_digest(token), "sign-up")
    await request.app[REPOSITORY].accounts.create(body.handle, new, source=request.get(SOURCE, request.remote or ""))
    return answer(AdminCreated(handle=body.handle, token=token), status=201)


async def who_am_i(request: web.Request) -> web.Response:
    """Tell what the relay makes of a token."""
    identity = await request.app[AUTHORITY].identify(bearer(request))
    service = identity.service.service if identity.service is not None else None
    return answer(WhoAmI(kind=identity.kind, handle=identity.handle, service=service))


ROUTES = [
    web.post(f"{PREFIX}/admins", create_admin),
    web.get(f"{PREFIX}/whoami", who_am_i),
]
