from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from kdispatch_protocol.tokens import token_digest, token_id, token_kind
from tests.relay.postgres import BOTH_STORES
from tests.relay.support import Api


@BOTH_STORES
async def test_sign_up(api: Api) -> None:
    """A free handle gives a new admin a token that is shown once and cached nowhere."""
    answer = await api("POST", "/api/v1/admins", json={"handle": "ann"})
    assert answer.status == 201
    assert set(answer.body) == {"handle", "token"}
    assert answer.body["handle"] == "ann"
    assert token_kind(answer.body["token"]) == "adm"
    assert answer.headers["Cache-Control"] == "no-store"


async def test_taken_handle(api: Api) -> None:
    """A handle belongs to the first who took it."""
    await api.admin("ann")
    answer = await api("POST", "/api/v1/admins", json={"handle": "ann"})
    assert (answer.status, answer.body["code"]) == (409, "handle_taken")


@BOTH_STORES
async def test_one_of_many_at_once_gets_the_handle(api: Api) -> None:
    """Of 50 parallel requests for one handle exactly one succeeds, and its token works."""
    answers = await asyncio.gather(*(api("POST", "/api/v1/admins", json={"handle": "ann"}) for _ in range(50)))
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 49}
    token = next(answer.body["token"] for answer in answers if answer.status == 201)
    assert (await api("GET", "/api/v1/whoami", token)).body["handle"] == "ann"


@pytest.mark.parametrize(
    "handle",
    ["", "A", "-a", "a-", "a_b", "a.b", "a/b", "a@b", "..", "ä", "a\n", "a\x00", "<img onerror>", "a" * 64, " a"],
)
async def test_bad_handle(api: Api, handle: str) -> None:
    """Anything but a DNS label in lower case is refused as a handle."""
    answer = await api("POST", "/api/v1/admins", json={"handle": handle})
    assert (answer.status, answer.body["code"]) == (422, "bad_name")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"ann"', b"{}", b'{"handle": 1}', b'{"handle": null}', b'{"handle": ["ann"]}',
        b'{"handle": "ann", "admin": true}', b'{"handle": "\xff"}', b'{"handle": "\\ud800"}', b"[" * 60_000,
    ],
)  # fmt: skip
async def test_malformed_body(api: Api, body: bytes) -> None:
    """Anything but the documented JSON is refused, and none of it is repeated."""
    answer = await api("POST", "/api/v1/admins", data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.body["code"]) == (422, "bad_request")
    assert "ann" not in json.dumps(answer.body)


async def test_who_am_i(api: Api) -> None:
    """The relay says for every token what it stands for."""
    admin = await api.admin("ann")
    service = await api.service(admin, "web")
    answer = await api("GET", "/api/v1/whoami", admin)
    assert answer.body == {"kind": "adm", "handle": "ann", "id": token_id(token_digest(admin)), "name": "sign-up"}
    answer = await api("GET", "/api/v1/whoami", service)
    told = {"kind": "svc", "handle": "ann", "service": "ann/web", "name": "service"}
    assert answer.body == told | {"id": token_id(token_digest(service))}


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "Token adm_x", "Bearer adm_x", "adm_x"])
async def test_refused_token(api: Api, header: str) -> None:
    """A malformed token is refused with 401, in any request."""
    answer = await api("GET", "/api/v1/whoami", headers={"Authorization": header})
    assert (answer.status, answer.body["code"]) == (401, "token_refused")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_token_travels_in_one_header_only(api: Api) -> None:
    """A token in the query is ignored and not repeated, and two Authorization headers are refused."""
    token = await api.admin("ann")
    in_query = await api("GET", f"/api/v1/whoami?token={token}&{token}")
    assert (in_query.status, in_query.body["code"]) == (422, "bad_request")
    assert token[:20] not in str(in_query.body)
    async with api.http.get("/api/v1/whoami", headers=[("Authorization", f"Bearer {token}")] * 2) as response:
        assert response.status == 401
    assert (await api("GET", "/api/v1/whoami", headers={"Authorization": f"bearer {token}"})).status == 200
