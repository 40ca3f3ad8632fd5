"""Deleting services and withdrawing hosts over REST: the rights, and what the switch is told."""

from __future__ import annotations

import hashlib

import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import format_token
from kdispatch_relay.switch.views import HostView, LiveHost
from tests.relay.postgres import BOTH_STORES
from tests.relay.support import Api

HOST = "4f1c09d2a8b35e6710fd42c98e6ba173"
OWN = format_token("hst", b"h" * 32)
UNKNOWN = format_token("adm", b"x" * 32)


def live(api: Api) -> None:
    api.gate.hosts[HOST] = LiveHost("ann/web", hashlib.sha256(OWN.encode()).hexdigest())


@BOTH_STORES
async def test_delete_service(api: Api) -> None:
    """Its owner deletes a service with its token; the switch is told, and the rest stays."""
    ann = await api.admin("ann")
    web, db = await api.service(ann, "web"), await api.service(ann, "db")
    answer = await api("DELETE", "/api/v1/services/ann/web", ann)
    assert (answer.status, answer.body) == (204, None)
    assert "recheck ann/web" in api.gate.calls
    assert (await api("GET", "/api/v1/services/ann/web")).status == 404
    assert (await api("GET", "/api/v1/whoami", web)).status == 401
    assert (await api("GET", "/api/v1/whoami", db)).status == 200
    again = await api("DELETE", "/api/v1/services/ann/web", ann)
    assert (again.status, again.body["code"]) == (404, "unknown_service")


@BOTH_STORES
async def test_a_new_service_of_the_name_has_a_new_token(api: Api) -> None:
    """The token of a deleted service does not host a later service of the same name."""
    ann = await api.admin("ann")
    old = await api.service(ann, "web")
    await api("DELETE", "/api/v1/services/ann/web", ann)
    new = await api.service(ann, "web")
    with pytest.raises(KdispatchError) as caught:
        await api.relay.authority.may_host("ann/web", old)
    assert caught.value.code == "token_refused"
    assert (await api.relay.authority.may_host("ann/web", new)).service.service == "ann/web"


async def test_who_may_not_delete_a_service(api: Api) -> None:
    """Tokens are checked before the service is looked up: another's service and a missing one get the same answer."""
    ann, bob = await api.admin("ann"), await api.admin("bob")
    own = await api.service(ann, "web")
    for token in (None, UNKNOWN, ann[:-1], format_token("svc", b"x" * 32), OWN):
        answer = await api("DELETE", "/api/v1/services/ann/web", token)
        assert (answer.status, answer.body["code"]) == (401, "token_refused")
    for token in (bob, own):
        answers = [await api("DELETE", f"/api/v1/services/ann/{name}", token) for name in ("web", "absent", "B_D")]
        for answer in answers:
            answer.body.pop("request_id")
            assert (answer.status, answer.body["code"]) == (403, "not_permitted")
        assert answers[0].body == answers[1].body == answers[2].body
    assert (await api("GET", "/api/v1/services/ann/web")).status == 200
    assert not [call for call in api.gate.calls if call.startswith("recheck")]


async def test_a_delete_whose_answer_was_lost_is_made_up_for(api: Api) -> None:
    """If an earlier DELETE lost its answer, a second one ends what is live of the deleted service."""
    ann = await api.admin("ann")
    api.gate.live["ann/web"] = [HostView(HOST, 0.0, {}, 0)]
    assert (await api("DELETE", "/api/v1/services/ann/web", ann)).status == 404
    assert "recheck ann/web" in api.gate.calls


@pytest.mark.parametrize("by", ["host", "owner"])
async def test_withdraw_host(api: Api, by: str) -> None:
    """A host is withdrawn by its own token or by its service's owner."""
    token = OWN if by == "host" else await api.admin("ann")
    live(api)
    answer = await api("DELETE", f"/api/v1/hosts/{HOST}", token)
    assert (answer.status, answer.body) == (204, None)
    assert api.gate.calls[-1] == f"withdraw {HOST}"


async def test_who_may_not_withdraw_a_host(api: Api) -> None:
    """A caller without a right to a host gets the answer of a missing one; a service's token has no right at all."""
    ann, bob, prefix = await api.admin("ann"), await api.admin("bob"), await api.admin("an")
    service = await api.service(ann, "web")
    live(api)
    for token in (None, UNKNOWN, ann[:-1], OWN[:-1], format_token("svc", b"x" * 32)):
        answer = await api("DELETE", f"/api/v1/hosts/{HOST}", token)
        assert (answer.status, answer.body["code"]) == (401, "token_refused")
    answer = await api("DELETE", f"/api/v1/hosts/{HOST}", service)
    assert (answer.status, answer.body["code"]) == (403, "not_permitted")
    seen = [await api("DELETE", f"/api/v1/hosts/{HOST}", t) for t in (bob, prefix, format_token("hst", b"o" * 32))]
    seen += [await api("DELETE", f"/api/v1/hosts/{host}", ann) for host in ("00" * 16, "short", "%00")]
    for answer in seen:
        answer.body.pop("request_id")
        assert (answer.status, answer.body["code"]) == (404, "unknown_host")
        assert answer.body == seen[0].body
    assert HOST in api.gate.hosts
