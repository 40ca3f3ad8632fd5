"""All routes, as their table has them: each documented error of a route occurs, and no other does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest
from aiohttp import hdrs
from yarl import URL

from kdispatch_protocol.tokens import token_digest, token_id
from kdispatch_relay.api.route import ApiRoute, BearerToken
from kdispatch_relay.api.routes import ROUTES
from tests.relay.support import Api

JSON: Final = {"Content-Type": "application/json"}
#: Told by tests of their own, which have what it takes: a gate, and a database that is away.
ELSEWHERE: Final = {
    ("open_tunnel", "bad_request"),
    ("open_tunnel", "version_unsupported"),
    ("readyz", "storage_unavailable"),
    ("rotate_service", "quota_exceeded"),
}
#: A body that each route takes.
BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "create_admin": {"handle": "new"},
    "create_service": {"name": "new", "access": "public", "pins": False},
    "change_service": {"access": "public", "pins": True},
    "rotate_service": {"overlap": 60},
    "create_token": {"name": "new", "for": "connect", "service": "web", "expires": 600},
    "create_invite": {"for": "connect", "uses": 1, "expires": 600, "name": "new"},
    "accept_invite": {"name": "new"},
}
#: As they stand in a URL: what is no text, what is no name, and what means something elsewhere.
IN_PATHS: Final = (
    "%00",
    "%ff",
    "%ED%A0%80",
    "%2F",
    "..",
    "..%2f..",
    "%0d%0a",
    "%E2%80%AE",
    "%F0%9F%98%80",
    "'",
    "*",
    "%",
    "%zz",
    "a" * 4000,
)
IN_QUERIES: Final = (
    "%00",
    "%ff=%ff",
    "a=%00",
    "service=%00",
    "service=%ED%A0%80",
    "service=",
    "service",
    "service=web&service=web",
    "limit=%F0%9F%98%80",
    "limit=99999999999999999999",
    "limit=-1",
    "limit=1.0",
    "limit=%D9%A1",
    "limit=1&limit=1",
    "before=0",
    "before=9223372036854775807",
    "before=9223372036854775808",
    "cursor=",
    "cursor=%00",
    "cursor=web",
    "cursor=999999999999999999-0123456789abcdef",
    "cursor=" + "0" * 32,
    "cursor=ab~::1~",
    "cursor=~~",
    "tokens=TRUE",
    "tokens",
    "tokens=1",
    "x" * 4000,
)
IN_BODIES: Final = (
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e400",
    "1" + "0" * 400,
    "NaN",
    '""',
    '"\\u0000"',
    '"\\ud800"',
    '"\\u202e"',
    '"\udc80"',
    '"%s"' % ("a" * 5000),
    "[]",
    "{}",
    "[" * 5000,
    '{"a":' * 5000,
    '"a", "more": 1',
)
AS_BODIES: Final = (
    b"",
    b"\0",
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"{",
    b"[]",
    b"null",
    b'"a"',
    b"{}{}",
    b'{"a": "\xff"}',
    b"[" * 60_000,
    b'{"a":' * 12_000,
    b'{"": 1}',
    b'{"name": "a", "name": 1}',
    "{}".encode("utf-16"),
)
AS_TOKENS: Final = (
    "",
    "Bearer",
    "Bearer ",
    "Bearer \x80\xff",
    "Basic YTpi",
    "Bearer " + "a" * 4000,
    "Bearer adm_a adm_b",
)


@dataclass(frozen=True)
class World:
    """A relay, and everything that a request may need."""

    api: Api
    tokens: Mapping[str, str]
    ids: Mapping[str, str]

    def path(self, route: ApiRoute, **other: str) -> str:
        values = {"handle": "ann", "name": "web", "host": "0" * 32, **self.ids, **other}
        return route.path.format_map(values)

    def token(self, route: ApiRoute) -> str | None:
        """A token with the right."""
        return (
            None if route.token is BearerToken.NONE else self.tokens["code" if route.name == "accept_invite" else "ann"]
        )

    async def ask(self, route: ApiRoute, token: str | None, path: str, body: object = None, **headers: str) -> str:
        """The code of the answer, which must be documented for the route, or its status."""
        sent: bytes | None = None
        if route.body is not None:
            sent = (
                body if isinstance(body, bytes) else json.dumps(BODIES[route.name] if body is None else body).encode()
            )
            headers = {**JSON, **headers}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        url = URL(f"{self.api.relay.url}{path}", encoded=True)  # unchanged, where a client would normalise it
        async with self.api.http.request(route.method, url, data=sent, headers=headers) as answer:
            text = await answer.text()
        assert answer.headers["Cache-Control"] == "no-store"
        if answer.status == route.status:
            return str(answer.status)
        problem = json.loads(text)
        if problem["code"] == "unknown_address":  # a path of another route, or of none
            return "unknown_address"
        assert problem["code"] in route.problems.get(answer.status, ()), f"{route.label}: {answer.status} {text}"
        return str(problem["code"])


@pytest.fixture
async def world(api: Api) -> World:
    ann, bob = await api.admin("ann"), await api.admin("bob")
    service = await api.service(ann, "web")
    invites, accept = "/api/v1/services/ann/web/invites", "/api/v1/invites/accept"
    made = [
        (await api("POST", invites, ann, json={"for": "host", "uses": uses})).body for uses in (10_000, 1, 2)
    ]  # fmt: skip
    code, spent, ended = (invite["code"] for invite in made)
    await api("POST", accept, spent, json={})
    await api("DELETE", f"{invites}/{made[2]['id']}", ann)
    other = (await api("POST", "/api/v1/tokens", ann, json={"name": "x", "for": "admin"})).body
    await api("DELETE", f"/api/v1/tokens/{other['id']}", ann)
    tokens = {"ann": ann, "bob": bob, "service": service, "code": code, "spent": spent}
    ids = {"token": token_id(token_digest(ann)), "invite": made[0]["id"]}
    return World(api, {**tokens, "ended": ended, "revoked": other["token"]}, ids)


async def provoked(world: World, route: ApiRoute, code: str) -> str:
    """The answer to a request that is wrong as ``code`` says, and right otherwise."""
    path, body = world.path(route), None
    if code in {"bad_name", "unknown_service"} and "name" in route.parameters:
        path = world.path(route, name="B_D" if code == "bad_name" else "absent")
    elif code in {"bad_name", "bad_request"} and route.body is None:
        path += "?service=B_D" if code == "bad_name" else "?no=such"
    elif code in {"unknown_token", "unknown_invite"}:
        path = world.path(route, token="0" * 16, invite="0" * 16)
    else:
        body = wrong_body(route, code)
    headers = {"Via": "1.1 a"} if route.name == "relay_state" else {}  # otherwise it would count as this machine's own
    return await world.ask(route, wrong_token(world, route, code), path, body, **headers)


def wrong_token(world: World, route: ApiRoute, code: str) -> str | None:
    takes_codes = route.name in {"accept_invite", "create_admin"}
    match code:
        case "token_refused":
            return "adm_x"
        case "revoked":
            return world.tokens["ended" if takes_codes else "revoked"]
        case "invite_spent":
            return world.tokens["spent"]
        case "not_permitted" if route.name != "relay_state":
            return world.tokens["code" if takes_codes else "service"]
        case _:
            return None if route.name == "relay_state" else world.token(route)


def wrong_body(route: ApiRoute, code: str) -> object:
    match code:
        case "bad_request":
            return {"no": "such field"}
        case "bad_name":
            field = {"create_admin": "handle", "create_token": "service"}.get(route.name, "name")
            return {**BODIES[route.name], field: "B_D"}
        case "unknown_service":
            return {**BODIES[route.name], "service": "absent"}
        case "service_exists":
            return {"name": "web"}
        case "handle_taken":
            return {"handle": "ann"}
        case _:
            return None


async def test_every_error_that_is_told_occurs(world: World) -> None:
    """Each code of each route can be provoked by a request that is wrong in this respect alone."""
    authority = world.api.relay.authority
    accounts = authority.repository.accounts
    wrong = {}
    for route in ROUTES:
        for code in route.own_errors:
            if (route.name, code) in ELSEWHERE:
                continue
            authority._sign_up = "open" if code == "handle_taken" else "code"
            few = 0 if code == "quota_exceeded" else None
            await accounts.set_quotas("ann", {"services": few, "tokens": few})
            if (got := await provoked(world, route, code)) != code:
                wrong[route.label, code] = got
    assert wrong == {}


async def test_no_request_is_too_strange(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is in path, query, body or token, the answer is a documented one, and nothing is logged."""
    for route in ROUTES:
        if route.name != "open_tunnel":  # its handshake has tests of its own
            await asyncio.gather(*strange(world, route))
    assert not caplog.records


def strange(world: World, route: ApiRoute) -> list[Coroutine[Any, Any, str]]:
    """Requests that no client would send by mistake."""
    path, token = world.path(route), world.token(route)
    asked = [
        *(world.ask(route, token, world.path(route, **{name: text})) for name in route.parameters for text in IN_PATHS),
        *(world.ask(route, token, f"{path}?{query}") for query in IN_QUERIES),
        *(world.ask(route, None, path, **{hdrs.AUTHORIZATION: shown}) for shown in AS_TOKENS),
    ]
    if route.body is not None:
        parts = {name: json.dumps(value) for name, value in BODIES[route.name].items()}
        for name in parts:
            for value in IN_BODIES:
                fields = ", ".join(f'"{key}": {text}' for key, text in {**parts, name: value}.items())
                asked.append(world.ask(route, token, path, f"{{{fields}}}".encode("utf-8", "surrogateescape")))
        asked += [world.ask(route, token, path, body) for body in AS_BODIES]
    return asked


async def test_other_methods(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A 405 lists the methods that the address takes; HEAD is GET without a body."""
    for path in dict.fromkeys(route.path for route in ROUTES):
        taken = {route.method for route in ROUTES if route.path == path}
        head = any(route.head for route in ROUTES if route.path == path and route.method == "GET")
        where = next(world.path(route) for route in ROUTES if route.path == path)
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LOCK"} - taken:
            async with world.api.http.request(method, where) as answer:
                if method == "HEAD" and head:
                    assert answer.status in {200, 401}
                    assert await answer.read() == b""
                    continue
            assert answer.status == 405
            assert set(answer.headers["Allow"].split(",")) == taken | ({"HEAD"} if head else set())
    assert not caplog.records
