from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

import pytest
from yarl import URL

from kdispatch_protocol.tokens import token_kind
from kdispatch_relay.switch.views import HostView
from tests.relay.postgres import BOTH_STORES
from tests.relay.support import Api


async def test_create_service(api: Api) -> None:
    """An admin's new service is public, and its token may host it."""
    answer = await api("POST", "/api/v1/services", await api.admin("ann"), json={"name": "web"})
    assert answer.status == 201
    token = answer.body.pop("token")
    assert answer.body == {"service": "ann/web", "access": "public", "pins": False}
    assert token_kind(token) == "svc"
    assert answer.headers["Cache-Control"] == "no-store"


@BOTH_STORES
async def test_one_of_many_at_once_creates_the_service(api: Api) -> None:
    """Of 50 parallel creations of one service exactly one succeeds, and another admin's is not affected."""
    ann, bob = await api.admin("ann"), await api.admin("bob")
    body = {"name": "web"}
    answers = await asyncio.gather(*(api("POST", "/api/v1/services", ann, json=body) for _ in range(50)))
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 49}
    assert {answer.body["code"] for answer in answers if answer.status == 409} == {"service_exists"}
    assert (await api("POST", "/api/v1/services", bob, json=body)).status == 201


@pytest.mark.parametrize("body", [{"name": "A"}, {"name": "web/x"}, {"name": ""}])
async def test_bad_service_name(api: Api, body: dict[str, str]) -> None:
    """A service's name follows the same rule as a handle."""
    answer = await api("POST", "/api/v1/services", await api.admin(), json=body)
    assert (answer.status, answer.body["code"]) == (422, "bad_name")


async def test_only_admins_create_and_list(api: Api) -> None:
    """A service's token neither creates services nor lists its owner's."""
    token = await api.service(await api.admin())
    for method, body in (("POST", {"name": "other"}), ("GET", None)):
        answer = await api(method, "/api/v1/services", token, json=body)
        assert (answer.status, answer.body["code"]) == (403, "not_permitted")
        answer = await api(method, "/api/v1/services", json=body)
        assert (answer.status, answer.body["code"]) == (401, "token_refused")


@BOTH_STORES
async def test_list_own_services(api: Api) -> None:
    """An admin sees all of its own services by name, and no others."""
    ann, bob = await api.admin("ann"), await api.admin("bob")
    await api.service(ann, "web")
    await api.service(ann, "db", "token")
    await api.service(bob, "game")
    api.gate.live["ann/web"] = [HostView("h1", 0.0, {}, 0)]
    answer = await api("GET", "/api/v1/services", ann)
    assert answer.body == {
        "services": [
            {"service": "ann/db", "access": "token", "pins": False, "live_hosts": 0},
            {"service": "ann/web", "access": "public", "pins": False, "live_hosts": 1},
        ]
    }


async def test_show_public_service(api: Api) -> None:
    """Everyone may see a public service and its live hosts."""
    await api.service(await api.admin("ann"))
    api.gate.live["ann/web"] = [HostView("h1", 1_700_000_000.5, {"region": "eu"}, 3)]
    answer = await api("GET", "/api/v1/services/ann/web")
    assert answer.body == {"service": "ann/web", "access": "public", "pins": False, "live_hosts": 1}
    answer = await api("GET", "/api/v1/services/ann/web/hosts")
    host = answer.body["hosts"][0]
    assert datetime.fromisoformat(host.pop("since")).timestamp() == 1_700_000_000
    assert answer.body == {"service": "ann/web", "hosts": [{"host": "h1", "labels": {"region": "eu"}, "streams": 3}]}


async def test_not_yours_looks_like_not_there(api: Api) -> None:
    """Without the right, a private service is answered with the same bytes as one that does not exist."""
    ann, bob = await api.admin("ann"), await api.admin("bob")
    stranger = await api.service(bob)
    await api.service(ann, "hidden", "token")
    for part in ("", "/hosts"):
        for token in (None, bob, stranger):
            answers = [await api("GET", f"/api/v1/services/ann/{name}{part}", token) for name in ("hidden", "absent")]
            for answer in answers:
                answer.body.pop("request_id")
            hidden, absent = answers
            assert (hidden.status, hidden.body["code"]) == (404, "unknown_service")
            assert (hidden.body, _without_date(hidden.headers)) == (absent.body, _without_date(absent.headers))


async def test_hidden_service_is_open_to_its_own(api: Api) -> None:
    """A private service is shown to its owner and to its own token."""
    ann = await api.admin("ann")
    own = await api.service(ann, "hidden", "token")
    for token in (ann, own):
        for part in ("", "/hosts"):
            assert (await api("GET", f"/api/v1/services/ann/hidden{part}", token)).status == 200


async def test_refused_token_on_public_service(api: Api) -> None:
    """An invalid token is refused even where none is needed, so that its holder learns of it."""
    await api.service(await api.admin("ann"))
    answer = await api("GET", "/api/v1/services/ann/web", "adm_mistyped")
    assert (answer.status, answer.body["code"]) == (401, "token_refused")


@pytest.mark.parametrize("path", ["Ann/web", "ann/w_b", "ann/%2e%2e", "ann%2Fx/web", "ann/%00", "127.0.0.1/22"])
async def test_bad_name_in_path(api: Api, path: str) -> None:
    """An invalid name is answered differently from an unknown service."""
    url = URL(f"{api.relay.url}/api/v1/services/{path}", encoded=True)  # unchanged, where a client would normalise it
    async with api.http.get(url) as response:
        answer = await response.json(content_type=None)
    assert (answer["status"], answer["code"]) == (422, "bad_name")


@BOTH_STORES
async def test_many_lookups_at_once(api: Api) -> None:
    """Each of many parallel look-ups gets the answer to its own question."""
    ann = await api.admin("ann")
    for name in ("s0", "s1", "s2"):
        await api.service(ann, name)
    names = [f"s{number % 5}" for number in range(100)]
    answers = await asyncio.gather(*(api("GET", f"/api/v1/services/ann/{name}") for name in names))
    for name, answer in zip(names, answers, strict=True):
        assert answer.status == (200 if name in {"s0", "s1", "s2"} else 404)
        assert answer.body.get("service", f"ann/{name}") == f"ann/{name}"


def _without_date(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name != "Date"}
