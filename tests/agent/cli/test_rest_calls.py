"""What each call of the REST client sends, and how it reads the answers of the contract."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import pytest
from aiohttp import web

from kdispatch.rest.client import (
    AcceptedInvite,
    AuditEvent,
    AuditPage,
    ClientInfo,
    CreatedInvite,
    CreatedService,
    CreatedToken,
    HostInfo,
    Identity,
    InviteInfo,
    RestClient,
    RotatedService,
    ServiceInfo,
    SignedUp,
    TokenInfo,
    TokenName,
)
from kdispatch_protocol.errors import KdispatchError
from tests.agent.cli.fake_relay import FakeRelay, new_token

ADM, SVC, CLI, INV = (new_token(kind) for kind in ("adm", "svc", "cli", "inv"))
AT: Final = "2026-11-26T05:00:00Z"
WHEN: Final = datetime(2026, 11, 26, 5, tzinfo=UTC)
ID: Final = "0123456789abcdef"
_NAMED: Final = {"id": ID, "name": "n"}
_INVITE: Final = _NAMED | {"for": "connect", "uses": 5, "used": 1, "created": AT, "expires": AT}


class Call(NamedTuple):
    """A call, the request that it makes, and the relay's answer with the parsed result."""

    do: Callable[[RestClient], Awaitable[Any]]
    request: str
    answer: dict[str, Any] | None
    result: Any
    body: dict[str, Any] | None = None
    shows: str = ADM


CALLS: Final = {
    "sign_up": Call(
        lambda r: r.sign_up("ann", code=INV),
        "POST /admins",
        {"handle": "ann", "token": ADM},
        SignedUp("ann", ADM),
        {"handle": "ann"},
        INV,
    ),
    "whoami": Call(
        lambda r: r.whoami(),
        "GET /whoami",
        _NAMED | {"kind": "cli", "handle": "ann", "service": "ann/web", "expires": AT},
        Identity("cli", "ann", "ann/web", ID, "n", WHEN),
    ),
    "create_service": Call(
        lambda r: r.create_service("web", access="token", pins=True),
        "POST /services",
        {"service": "ann/web", "access": "token", "pins": True, "token": SVC},
        CreatedService("ann/web", "token", pins=True, token=SVC),
        {"name": "web", "access": "token", "pins": True},
    ),
    "update_service": Call(
        lambda r: r.update_service("ann/web", pins=False),
        "PATCH /services/ann/web",
        {"service": "ann/web", "access": "token", "pins": False, "live_hosts": 2},
        ServiceInfo("ann/web", "token", 2, pins=False),
        {"pins": False},
    ),
    "rotate_service": Call(
        lambda r: r.rotate_service("ann/web", overlap=60),
        "POST /services/ann/web/rotate",
        {"service": "ann/web", "id": ID, "old_until": AT, "token": SVC},
        RotatedService("ann/web", ID, WHEN, SVC),
        {"overlap": 60},
    ),
    "hosts": Call(
        lambda r: r.hosts("ann/web"),
        "GET /services/ann/web/hosts",
        {"hosts": [{"host": ID, "since": AT, "labels": {}, "streams": 1, "source": "::1", "token": _NAMED}]},
        (HostInfo(ID, WHEN, {}, 1, "::1", TokenName(ID, "n")),),
    ),
    "clients": Call(
        lambda r: r.clients("ann/web"),
        "GET /services/ann/web/clients",
        {"clients": [{"agent": ID, "source": "::1", "since": AT, "streams": 3, "token": _NAMED}]},
        (ClientInfo(ID, "::1", WHEN, 3, TokenName(ID, "n")),),
    ),
    "create_invite": Call(
        lambda r: r.create_invite("ann/web", "connect", uses=5, expires=60, name="n"),
        "POST /services/ann/web/invites",
        _INVITE | {"service": "ann/web", "code": INV},
        CreatedInvite(
            id=ID,
            purpose="connect",
            name="n",
            uses=5,
            used=1,
            created=WHEN,
            expires=WHEN,
            service="ann/web",
            code=INV,
        ),
        {"for": "connect", "uses": 5, "expires": 60, "name": "n"},
    ),
    "invites": Call(
        lambda r: r.invites("ann/web"),
        "GET /services/ann/web/invites",
        {"service": "ann/web", "invites": [_INVITE | {"revoked": True}]},
        (InviteInfo(id=ID, purpose="connect", name="n", uses=5, used=1, created=WHEN, expires=WHEN, revoked=True),),
    ),
    "revoke_invite": Call(
        lambda r: r.revoke_invite("ann/web", ID, tokens=True),
        f"DELETE /services/ann/web/invites/{ID}?tokens=true",
        None,
        None,
    ),
    "accept_invite": Call(
        lambda r: r.accept_invite(INV, name="n"),
        "POST /invites/accept",
        _NAMED | {"service": "ann/web", "for": "connect", "kind": "cli", "token": CLI},
        AcceptedInvite("ann/web", "connect", "cli", ID, "n", CLI),
        {"name": "n"},
        INV,
    ),
    "accept_invite without a name": Call(
        lambda r: r.accept_invite(INV),
        "POST /invites/accept",
        _NAMED | {"service": "ann/web", "for": "host", "kind": "svc", "token": SVC},
        AcceptedInvite("ann/web", "host", "svc", ID, "n", SVC),
        {},
        INV,
    ),
    "create_token": Call(
        lambda r: r.create_token("n", "connect", service="web", expires=3600),
        "POST /tokens",
        _NAMED | {"kind": "cli", "service": "ann/web", "created": AT, "expires": AT, "token": CLI},
        CreatedToken(ID, "cli", "n", WHEN, "ann/web", WHEN, CLI),
        {"name": "n", "for": "connect", "service": "web", "expires": 3600},
    ),
    "tokens": Call(
        lambda r: r.tokens(service="web"),
        "GET /tokens?service=web",
        {"tokens": [_NAMED | {"kind": "adm", "created": AT, "last_used": AT, "invite": ID}]},
        (TokenInfo(ID, "adm", "n", WHEN, last_used=WHEN, invite=ID),),
    ),
    "revoke_token": Call(lambda r: r.revoke_token(ID), f"DELETE /tokens/{ID}", None, None),
    "audit": Call(
        lambda r: r.audit(service="web", before=9, limit=2),
        "GET /audit?service=web&before=9&limit=2",
        {
            "events": [
                {"id": 7, "at": AT, "actor": "a", "action": "b", "subject": "c", "source": "::1", "detail": {"d": 1}}
            ],
            "next": 7,
        },
        AuditPage((AuditEvent(7, WHEN, "a", "b", "c", "::1", {"d": 1}),), 7),
    ),
    "audit without anything": Call(lambda r: r.audit(), "GET /audit", {"events": []}, AuditPage((), None)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_each_call(relay: FakeRelay, name: str) -> None:
    """A call makes the request of the contract, with the right token, and its answer is read completely."""
    call = CALLS[name]

    async def answer(request: web.Request) -> web.Response:
        assert f"{request.method} {request.path_qs}" == call.request.replace(" /", " /api/v1/", 1)
        assert (await request.json() if request.can_read_body else None) == call.body
        assert request.headers["Authorization"] == f"Bearer {call.shows}"
        if call.answer is None:
            return web.Response(status=204)
        return web.json_response(call.answer | {"of": "tomorrow"}, status=201)

    relay.instead = answer
    async with RestClient(relay.url, token=ADM) as client:
        assert await call.do(client) == call.result


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.answer])
async def test_what_is_no_relays_answer(relay: FakeRelay, name: str) -> None:
    """An answer with a member of another type, or a token of another kind, is refused as not a relay's."""
    call = CALLS[name]
    assert call.answer is not None
    for member, value in call.answer.items():
        strange: Any = {"of": "no kind"} if not isinstance(value, list) else [7]
        if member in {"token", "code"}:
            strange = new_token("hst")

        async def answer(_: web.Request, changed: dict[str, Any] = call.answer | {member: strange}) -> web.Response:
            return web.json_response(changed)

        relay.instead = answer
        async with RestClient(relay.url, token=ADM) as client:
            if member == "service" and name == "invites":
                continue  # the list belongs to the requested service
            with pytest.raises(KdispatchError, match="not_a_relay"):
                await call.do(client)


async def test_a_time_without_a_zone_is_none(relay: FakeRelay) -> None:
    """A time without a zone is refused as not a relay's."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"kind": "adm", "handle": "ann", "expires": "2026-11-26T05:00:00"})

    relay.instead = answer
    async with RestClient(relay.url, token=ADM) as client:
        with pytest.raises(KdispatchError, match="not_a_relay"):
            await client.whoami()
