"""Tokens, invitations and the audit over REST, with the real store: creating, listing and revoking, and the answers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import format_token, token_digest, token_id, token_kind
from tests.relay.postgres import BOTH_STORES
from tests.relay.support import Api

TOKENS = "/api/v1/tokens"
WEB = "/api/v1/services/ann/web"


async def made(api: Api, admin: str, **body: Any) -> dict[str, Any]:
    answer = await api("POST", TOKENS, admin, json={"name": "laptop", "for": "admin", **body})
    assert answer.status == 201, answer.body
    return dict(answer.body)


async def code(api: Api, admin: str, path: str, token: str | None = None, method: str = "GET") -> object:
    answer = await api(method, path, token or admin)
    return None if answer.body is None else answer.body.get("code", answer.status)


@pytest.fixture
async def ann(api: Api) -> str:
    token = await api.admin("ann")
    await api.service(token, "web", "token")
    return token


@BOTH_STORES
@pytest.mark.parametrize(("purpose", "kind"), [("admin", "adm"), ("host", "svc"), ("connect", "cli")])
async def test_a_token_does_what_it_is_for(api: Api, ann: str, purpose: str, kind: str) -> None:
    """A new token is shown once, is listed, and may do what its kind may; its id is derived from its digest."""
    of_service = {} if purpose == "admin" else {"service": "web"}
    token = await made(api, ann, **{"for": purpose}, **of_service)
    assert token_kind(token["token"]) == kind == token["kind"]
    assert token["id"] == token_id(token_digest(token["token"]))
    who = (await api("GET", "/api/v1/whoami", token["token"])).body
    assert (who["kind"], who["handle"], who["id"], who["name"]) == (kind, "ann", token["id"], "laptop")
    assert (await api("GET", WEB, token["token"])).status == 200
    listed = (await api("GET", TOKENS, ann)).body["tokens"]
    assert [one for one in listed if one["id"] == token["id"]] == [
        {key: value for key, value in token.items() if key != "token"}
    ]
    may_host, may_open = (
        await _may(api.relay.authority.may_host("ann/web", token["token"])),
        await _may(api.relay.authority.may_open("ann/web", token["token"])),
    )
    assert (may_host, may_open) == {"adm": ("", ""), "svc": ("", "unknown_service"), "cli": ("not_permitted", "")}[kind]


async def _may(question: Any) -> str:
    try:
        await question
    except KdispatchError as error:
        return error.code
    return ""


@BOTH_STORES
async def test_a_revoked_token(api: Api, ann: str) -> None:
    """A revoked token is answered with ``revoked``, the switch is told of it, and it stays listed as revoked."""
    token = await made(api, ann, **{"for": "connect"}, service="web")
    assert await code(api, ann, f"{TOKENS}/{token['id']}", method="DELETE") is None
    assert "recheck ann/web" in api.gate.calls
    assert await code(api, ann, WEB, token["token"]) == "revoked"
    assert await code(api, ann, f"{TOKENS}/{token['id']}", method="DELETE") == "unknown_token"
    [one] = [one for one in (await api("GET", f"{TOKENS}?service=web", ann)).body["tokens"] if one["id"] == token["id"]]
    assert one["revoked"] is True


async def test_an_expired_token(api: Api, ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired token is refused from the second in which it expires, with the time."""
    token = await made(api, ann, expires=60)
    now = time.time()
    monkeypatch.setattr("kdispatch_relay.auth.time.time", lambda: now + 61)
    answer = await api("GET", "/api/v1/whoami", token["token"])
    assert (answer.status, answer.body["code"]) == (401, "token_refused")
    assert "expired at 20" in answer.body["detail"]


@BOTH_STORES
async def test_nobody_locks_himself_out(api: Api, ann: str) -> None:
    """The last admin token without an expiry stays, also next to one that expires, and if two are revoked at once."""
    first = token_id(token_digest(ann))
    await made(api, ann, expires=600)
    assert await code(api, ann, f"{TOKENS}/{first}", method="DELETE") == "last_token"
    second = await made(api, ann)
    answers = await asyncio.gather(
        code(api, ann, f"{TOKENS}/{second['id']}", method="DELETE"),
        code(api, second["token"], f"{TOKENS}/{first}", method="DELETE"),
    )
    assert answers.count(None) == 1 and set(answers) <= {None, "last_token", "revoked"}


@BOTH_STORES
async def test_another_admins_tokens(api: Api, ann: str) -> None:
    """Another admin's tokens are not listed and cannot be revoked: the answer is that of a missing token."""
    bob = await api.admin("bob")
    token = await made(api, ann)
    assert await code(api, bob, f"{TOKENS}/{token['id']}", method="DELETE") == "unknown_token"
    assert [one["name"] for one in (await api("GET", TOKENS, bob)).body["tokens"]] == ["sign-up"]
    answer = await api("POST", TOKENS, bob, json={"name": "x", "for": "host", "service": "web"})
    assert (answer.status, answer.body["code"]) == (404, "unknown_service")


@pytest.mark.parametrize(
    "body",
    [
        {"for": "host"}, {"for": "admin", "service": "web"}, {"for": "all"}, {"name": ""}, {"name": "a\nb"},
        {"name": "x" * 64}, {"name": "a\u202eb"}, {"expires": 59}, {"expires": True}, {"expires": 1 << 70},
        {"expires": None}, {"more": 1},
    ],
)  # fmt: skip
async def test_bad_wishes(api: Api, ann: str, body: dict[str, object]) -> None:
    """Undocumented values are refused, and nothing is created."""
    answer = await api("POST", TOKENS, ann, json={"name": "laptop", "for": "admin", **body})
    assert (answer.status, answer.body["code"]) == (422, "bad_request")
    assert len((await api("GET", TOKENS, ann)).body["tokens"]) == 2


@pytest.mark.parametrize("written", ["600", "600.0", "6e2"])
async def test_numbers_of_json(api: Api, ann: str, written: str) -> None:
    """A whole number is accepted in any form that JSON allows, wherever one is expected."""
    headers = {"Content-Type": "application/json"}
    for path, body in (
        (TOKENS, '"name": "laptop", "for": "admin", "expires"'),
        (f"{WEB}/invites", '"for": "connect", "expires": 60, "uses"'),
        (f"{WEB}/invites", '"for": "connect", "expires"'),
        (f"{WEB}/rotate", '"overlap"'),
    ):
        answer = await api("POST", path, ann, data=f"{{{body}: {written}}}", headers=headers)
        assert answer.status in {200, 201}, answer.body


@pytest.mark.parametrize("written", ["600.5", "1e400", "1e300", '"600"', "true", "-600.0", "NaN"])
async def test_numbers_that_are_none(api: Api, ann: str, written: str) -> None:
    """Fractions, numbers that are too large, and other types are not accepted as whole numbers."""
    body = f'{{"name": "laptop", "for": "admin", "expires": {written}}}'
    answer = await api("POST", TOKENS, ann, data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.body["code"]) == (422, "bad_request")


@BOTH_STORES
@pytest.mark.parametrize("overlap", [0, 3600])
async def test_rotation(api: Api, ann: str, overlap: int) -> None:
    """The service's own token is replaced, at once or later; another token to host it stays."""
    old = await api.service(ann, "old")
    other = await made(api, ann, **{"for": "host"}, service="old")
    answer = await api("POST", "/api/v1/services/ann/old/rotate", ann, json={"overlap": overlap} if overlap else {})
    assert answer.status == 200 and ("old_until" in answer.body) == bool(overlap)
    assert "recheck ann/old" in api.gate.calls
    assert await _may(api.relay.authority.may_host("ann/old", old)) == ("" if overlap else "revoked")
    for token in (answer.body["token"], other["token"]):
        assert await _may(api.relay.authority.may_host("ann/old", token)) == ""


@BOTH_STORES
@pytest.mark.parametrize(("purpose", "kind"), [("host", "svc"), ("connect", "cli")])
async def test_an_invitation(api: Api, ann: str, purpose: str, kind: str) -> None:
    """An invitation's code gives as many tokens as it has uses, each with its own name; then it is spent."""
    wish = {"for": purpose, "uses": 2, "expires": 600, "name": "support"}
    invite = (await api("POST", f"{WEB}/invites", ann, json=wish)).body
    for name in ("bob", None):
        answer = await api("POST", "/api/v1/invites/accept", invite["code"], json={"name": name} if name else {})
        assert answer.status == 201
        assert (answer.body["kind"], answer.body["name"]) == (kind, name or "support")
        who = (await api("GET", "/api/v1/whoami", answer.body["token"])).body
        assert (who["kind"], who["service"]) == (kind, "ann/web")
    answer = await api("POST", "/api/v1/invites/accept", invite["code"], json={})
    assert (answer.status, answer.body["code"]) == (410, "invite_spent")
    [listed] = (await api("GET", f"{WEB}/invites", ann)).body["invites"]
    assert (listed["used"], listed["uses"], listed["for"]) == (2, 2, purpose)
    assert {one.get("invite") for one in (await api("GET", TOKENS, ann)).body["tokens"]} == {None, invite["id"]}


@BOTH_STORES
@pytest.mark.parametrize("tokens", [False, True])
async def test_a_revoked_invitation(api: Api, ann: str, tokens: bool) -> None:
    """A revoked invitation cannot be accepted any more, and its tokens are revoked on request."""
    invite = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect", "uses": 2})).body
    token = (await api("POST", "/api/v1/invites/accept", invite["code"], json={})).body["token"]
    query = "?tokens=true" if tokens else ""
    assert (await api("DELETE", f"{WEB}/invites/{invite['id']}{query}", ann)).status == 204
    answer = await api("POST", "/api/v1/invites/accept", invite["code"], json={})
    assert (answer.status, answer.body["code"]) == (401, "revoked")
    assert await code(api, ann, WEB, token) == ("revoked" if tokens else 200)
    assert await code(api, ann, f"{WEB}/invites/{'0' * 16}", method="DELETE") == "unknown_invite"


async def test_what_is_no_invitation(api: Api, ann: str) -> None:
    """Neither an unknown code nor another token is accepted as an invitation."""
    for token in (ann, format_token("inv", b"x" * 32), "inv_x", None):
        answer = await api("POST", "/api/v1/invites/accept", token, json={})
        assert (answer.status, answer.body["code"]) == (401, "token_refused")


@BOTH_STORES
async def test_quotas(api: Api, ann: str) -> None:
    """One service and one token above the account's quota are refused; existing ones stay."""
    await api.relay.authority.repository.accounts.set_quotas("ann", {"services": 2, "tokens": 2})
    await api.service(ann, "two")
    answer = await api("POST", "/api/v1/services", ann, json={"name": "three"})
    assert (answer.status, answer.body["code"]) == (429, "quota_exceeded")
    assert int(answer.headers["Retry-After"]) >= 1
    await made(api, ann)
    answer = await api("POST", TOKENS, ann, json={"name": "x", "for": "admin"})
    assert (answer.status, answer.body["code"]) == (429, "quota_exceeded")
    invite = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})).body
    answer = await api("POST", "/api/v1/invites/accept", invite["code"], json={})
    assert (answer.status, answer.body["code"]) == (429, "quota_exceeded")
    answer = await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})
    assert answer.status == 201  # one more that was not accepted yet
    answer = await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})
    assert (answer.status, answer.body["code"]) == (429, "quota_exceeded")
    assert {one["used"] for one in (await api("GET", f"{WEB}/invites", ann)).body["invites"]} == {0}


@BOTH_STORES
async def test_a_suspended_account(api: Api, ann: str) -> None:
    """A suspended account's tokens get ``revoked``, its services look missing, and all comes back on resumption."""
    public = await api.service(ann, "open")
    accounts = api.relay.authority.repository.accounts
    assert await accounts.suspend("ann", "spam") and not await accounts.suspend("nobody")
    assert "recheck ann" in api.gate.calls
    for token in (ann, public):
        answer = await api("GET", "/api/v1/whoami", token)
        assert (answer.status, answer.body["code"]) == (401, "revoked") and "suspended" in answer.body["detail"]
    assert (await api("GET", "/api/v1/services/ann/open")).body["code"] == "unknown_service"
    assert await _may(api.relay.authority.may_open("ann/open", None)) == "unknown_service"
    assert await accounts.resume("ann")
    assert (await api("GET", "/api/v1/services/ann/open")).status == 200


@BOTH_STORES
async def test_changing_a_service(api: Api, ann: str) -> None:
    """Only the fields that are given change; a change of nothing is refused."""
    assert (await api("PATCH", WEB, ann, json={"pins": True})).body == {
        "service": "ann/web", "access": "token", "pins": True, "live_hosts": 0,
    }  # fmt: skip
    assert (await api("PATCH", WEB, ann, json={"access": "public"})).body["pins"] is True
    assert (await api("GET", WEB)).status == 200
    for body in ({}, {"access": "all"}, {"pins": 1}, {"name": "x"}, {"access": None}):
        assert (await api("PATCH", WEB, ann, json=body)).status == 422
    assert (await api("PATCH", "/api/v1/services/ann/none", ann, json={"pins": True})).status == 404


@BOTH_STORES
async def test_the_audit(api: Api, ann: str) -> None:
    """The audit has every change, with its actor, source and subject; page by page, and without a secret."""
    token = await made(api, ann, **{"for": "connect"}, service="web")
    await api("DELETE", f"{TOKENS}/{token['id']}", ann)
    await api("POST", f"{WEB}/rotate", ann, json={})
    await api("PATCH", WEB, ann, json={"pins": True})
    await api("DELETE", WEB, ann)
    first = (await api("GET", "/api/v1/audit?limit=4", ann)).body
    second = (await api("GET", f"/api/v1/audit?before={first['next']}", ann)).body
    events = first["events"] + second["events"]
    assert [event["action"] for event in events] == [
        "service.delete", "service.change", "service.rotate", "token.revoke", "token.create", "service.create",
        "sign_up",
    ]  # fmt: skip
    assert "next" not in second
    assert {event["source"] for event in events} == {"127.0.0.1"}
    actor = f"adm {token_id(token_digest(ann))} sign-up"
    assert [event["actor"] for event in events] == [actor] * 6 + ["anybody"]
    assert (events[4]["subject"], events[4]["detail"]["token"]) == ("ann/web", token["id"])
    assert ann[4:30] not in str(events) and token["token"][4:30] not in str(events)
    bob = await api.admin("bob")
    assert [event["action"] for event in (await api("GET", "/api/v1/audit", bob)).body["events"]] == ["sign_up"]
    for query in (
        "limit=0",
        "limit=1001",
        "limit=x",
        "before=-1",
        f"before={1 << 63}",
        "service=A",
        "more=1",
        "limit=1&limit=2",
    ):
        assert (await api("GET", f"/api/v1/audit?{query}", ann)).status == 422


@BOTH_STORES
async def test_races(api: Api, ann: str) -> None:
    """Of 50 at once, one gets the last use of an invitation, the name of a service, the last place of a quota."""
    invite = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})).body
    accepting = [api("POST", "/api/v1/invites/accept", invite["code"], json={}) for _ in range(50)]
    statuses = sorted(answer.status for answer in await asyncio.gather(*accepting))
    assert statuses == [201] + [410] * 49
    naming = [api("POST", "/api/v1/services", ann, json={"name": "same"}) for _ in range(50)]
    assert sorted(answer.status for answer in await asyncio.gather(*naming)) == [201] + [409] * 49
    await api.relay.authority.repository.accounts.set_quotas("ann", {"services": 3, "tokens": 3})
    last = [api("POST", "/api/v1/services", ann, json={"name": f"n{number}"}) for number in range(50)]
    assert sorted(answer.status for answer in await asyncio.gather(*last)) == [201] + [429] * 49
    last = [api("POST", TOKENS, ann, json={"name": f"n{number}", "for": "admin"}) for number in range(50)]
    assert sorted(answer.status for answer in await asyncio.gather(*last)) == [201] + [429] * 49
