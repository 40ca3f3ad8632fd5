"""Threat 4: a stranger hosts or changes another person's service."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any, Final

from kdispatch_relay.api.routes import ROUTES
from kdispatch_relay.auth import RIGHTS, Party
from tests.security.site import Agent, Caller, made, offers, site

#: Actions of the owner only, with a request body where the route needs one.
_BODIES: Final[dict[str, Any]] = {
    "service.change": {"access": "public"},
    "service.rotate": {},
    "invite.create": {"for": "host"},
}


async def test_writes_under_another_handle(folder: Path) -> None:
    """Every owner-only route refuses any other token with 403, whether or not the service exists."""
    wanted = [route for route in ROUTES if route.who in RIGHTS and RIGHTS[route.who].parties == {Party.OWNER}]
    assert len(wanted) >= 7
    async with site(folder) as relay, Caller.of(relay) as caller:
        ann, bob = await caller.admin("ann"), await caller.admin("bob")
        svc = (await made(caller, "/services", ann, name="web", access="token"))["token"]
        other = (await made(caller, "/services", bob, name="web", access="token"))["token"]
        for route in wanted:
            for token in (bob, other, svc):
                bodies = []
                for name in ("web", "none"):
                    path = route.path.format(handle="ann", name=name, invite="0" * 16)
                    more = {} if route.body is None else {"json": _BODIES[route.who]}
                    answer = await caller(route.method, path, token, **more)
                    assert answer.status == 403, f"{route.label}: {answer.status}"
                    assert answer.body["code"] == "not_permitted"
                    bodies.append({key: value for key, value in answer.body.items() if key != "request_id"})
                assert bodies[0] == bodies[1]
        shown = await caller("GET", "/api/v1/services/ann/web", ann)
        assert shown.body["access"] == "token"


async def test_who_hosts(folder: Path) -> None:
    """Only the owner's tokens and a token from an invitation to host can offer a service."""
    async with site(folder) as relay, Caller.of(relay) as caller, Agent.of(relay) as agent:
        ann, bob = await caller.admin("ann"), await caller.admin("bob")
        svc = (await made(caller, "/services", ann, name="web"))["token"]
        other = (await made(caller, "/services", bob, name="web"))["token"]
        codes = {}
        for kind in ("host", "connect"):
            invite = await made(caller, "/services/ann/web/invites", ann, **{"for": kind})
            codes[kind] = invite["code"]
        accepted = {kind: (await made(caller, "/invites/accept", code))["token"] for kind, code in codes.items()}
        refused = {bob: "not_permitted", other: "not_permitted", accepted["connect"]: "not_permitted"}
        refused[codes["host"]] = "token_refused"
        number = 1
        for token, code in {**refused, svc: "OFFERED", accepted["host"]: "OFFERED", ann: "OFFERED"}.items():
            assert await offers(agent, number, "ann/web", token) == code
            number += 2


async def test_fifty_at_once(folder: Path) -> None:
    """If fifty callers take a handle or create a service at the same moment, exactly one succeeds."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        asked = (caller("POST", "/api/v1/admins", json={"handle": "ann"}) for _ in range(50))
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status for answer in answers) == {201: 1, 409: 49}
        [admin] = [answer.body["token"] for answer in answers if answer.status == 201]
        asked = (caller("POST", "/api/v1/services", admin, json={"name": "web"}) for _ in range(50))
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status for answer in answers) == {201: 1, 409: 49}
