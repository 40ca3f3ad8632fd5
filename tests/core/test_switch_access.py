"""The relay's switch: what rests on a claim that no longer holds ends, and nothing else; quotas and pins."""

from __future__ import annotations

import dataclasses

import pytest

from kdispatch_protocol.tokens import token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Reset
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.revocations import Claim, claims, doubt, revoke
from tests.core.agents import SERVICE, Peer, Relay, Said
from tests.core.intents import questions_of

WHY = ("token_refused", "The token was revoked.")


def codes(said: Said) -> list[tuple[int, str]]:
    return sorted((number, Reset.parse(payload).code) for name, number, _, payload in said if name == "RESET")


def claim(role: str, token: str | None) -> Claim:
    return Claim(SERVICE, role, None if token is None else token_digest(token))


def opened(relay: Relay, host: Peer, client: Peer, number: int, token: str | None) -> int:
    """Open a stream with this token; returns the host's number of it."""
    client.open(number, token=token)
    relay.answer()
    leg = client.session.legs[number]
    assert leg.route.host is not None and leg.route.host.session is host.session
    host.opened(leg.route.host.number, leg.route.attempt)
    client.hear()
    host.hear()
    return leg.route.host.number


def test_one_clients_token_is_revoked() -> None:
    """Its streams end with ``revoked`` at both ends; other streams, with or without a token, and the offer go on."""
    relay = Relay()
    relay.terms = Terms(public=False)
    host, client, other = relay.agent(1, offers=True), relay.agent(2), relay.agent(3)
    first = opened(relay, host, client, 1, "a")
    second = opened(relay, host, client, 3, "b")
    opened(relay, host, other, 1, "a")
    assert claims(relay.switch, SERVICE) == {claim("host", "t"), claim("client", "a"), claim("client", "b")}
    doubt(relay.switch, SERVICE)
    revoke(relay.switch, {claim("client", "a"): WHY}, relay.now)
    assert codes(client.hear()) == [(1, "revoked")] and codes(other.hear()) == [(1, "revoked")]
    assert len(codes(host.hear())) == 2 and first not in host.session.legs
    client.say(frame(frames.DATA, 3, 0, b"x"))
    assert host.hear()[0][:2] == ("DATA", second)
    assert len(relay.switch.registry.hosts_of(SERVICE)) == 1


def test_one_hosts_token_is_revoked() -> None:
    """Its offer and its streams end; the clients get a code that does not blame them; another host's stream goes on."""
    relay = Relay()
    relay.terms = Terms(public=False)
    bad = relay.agent(1)
    bad.offer(token="bad")
    client = relay.agent(2)
    number = opened(relay, bad, client, 1, "a")
    good = relay.agent(3)
    good.offer(token="good")
    relay.picks = [1]
    opened(relay, good, client, 3, "a")
    revoke(relay.switch, {claim("host", "bad"): WHY}, relay.now)
    assert codes(bad.hear()) == [(1, "revoked"), (number, "revoked")]
    assert codes(client.hear()) == [(1, "withdrawn")]
    assert [host.session for host in relay.switch.registry.hosts_of(SERVICE)] == [good.session]
    assert 3 in client.session.legs


def test_a_host_that_is_asked_is_revoked() -> None:
    """An open that waits for the revoked host's answer goes to another host."""
    relay = Relay()
    bad, good, client = relay.agent(1), relay.agent(3, offers=True), relay.agent(2)
    bad.offer(token="bad")
    relay.picks = [1]
    client.open()
    asked = client.session.legs[1].route.host
    assert asked is not None and asked.session is bad.session
    client.hear()
    revoke(relay.switch, {claim("host", "bad"): WHY}, relay.now)
    again = client.session.legs[1].route.host
    assert again is not None and again.session is good.session
    assert codes(client.hear()) == []


def test_an_open_without_an_answer_is_told_the_code_itself() -> None:
    """An unanswered open is refused with the store's own code instead of ``revoked``, because nothing was running."""
    relay = Relay()
    relay.terms = Terms(public=False)
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open(1, token="a")
    relay.answer()
    revoke(relay.switch, {claim("client", "a"): WHY}, relay.now)
    assert codes(client.hear()) == [(1, "token_refused")]
    assert codes(host.hear()) == [(2, "revoked")]


def test_another_scope_is_left_alone() -> None:
    """A scope is one service, or all of one handle, and not names that begin with it."""
    relay = Relay()
    relay.agent(1, offers=True)
    assert claims(relay.switch, "ann/web") == claims(relay.switch, "ann") == {claim("host", "t")}
    assert not any(claims(relay.switch, scope) for scope in ("an", "annx", "ann/we", "ann/web2", "bob", "", "web"))


def test_what_is_public_is_asked_for_again() -> None:
    """After a change the next OPEN is looked up, although the service was known to be public."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    opened(relay, host, client, 1, None)
    client.open(3)
    assert not questions_of(relay.switch)
    doubt(relay.switch, SERVICE)
    client.open(5)
    assert len(questions_of(relay.switch)) == 1


def test_pins() -> None:
    """A client gets the host that it chose, and no other, if the service allows pins; otherwise it is refused."""
    relay = Relay()
    first, second, client = relay.agent(1, offers=True), relay.agent(3, offers=True), relay.agent(2)
    client.open(1, pin=host_id(second.process, SERVICE))
    leg = client.session.legs[1].route.host
    assert leg is not None and leg.session is second.session and not first.hear()
    client.open(3, pin="ab" * 16)
    assert codes(client.hear()) == [(3, "no_live_host")]
    relay.terms = dataclasses.replace(relay.terms, pins=False)
    doubt(relay.switch, SERVICE)
    client.open(5, pin=host_id(second.process, SERVICE))
    relay.answer()
    assert codes(client.hear()) == [(5, "not_permitted")]


@pytest.mark.parametrize("public", [True, False])
def test_quota_of_streams(public: bool) -> None:
    """A stream above the owner's quota is refused, and a stream that ends makes room."""
    relay = Relay()
    relay.terms = Terms(public=public, streams=2)
    host, client = relay.agent(1, offers=True), relay.agent(2)
    opened(relay, host, client, 1, None)
    opened(relay, host, client, 3, None)
    client.open(5)
    relay.answer()
    assert codes(client.hear()) == [(5, "quota_exceeded")]
    client.reset(3, "cancelled")
    host.hear()
    opened(relay, host, client, 7, None)
    assert relay.switch.registry.account(SERVICE).streams == 2


def test_quota_of_hosts() -> None:
    """A host above the owner's quota is refused; a host that comes back or moves counts once."""
    relay = Relay()
    relay.terms = Terms(public=True, hosts=1)
    host = relay.agent(1, offers=True)
    late = relay.agent(2)
    late.offer()
    assert codes(late.hear()) == [(1, "quota_exceeded")]
    host.lose()
    again = relay.agent(1)
    again.offer()
    assert codes(again.hear()) == [] and len(relay.switch.registry.hosts_of(SERVICE)) == 1
    again.lose()
    late.offer(3)
    assert codes(late.hear()) == []


def test_nothing_is_left_of_a_usage() -> None:
    """An owner's counts are forgotten when they are zero."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    opened(relay, host, client, 1, None)
    client.lose()
    host.lose()
    assert not relay.switch.registry._accounts


@pytest.mark.parametrize("code", ["revoked", "token_refused", "not_permitted", "unknown_service"])
def test_a_host_can_not_end_its_clients_for_good(code: str) -> None:
    """Codes about access that only a relay may send are not passed on from an agent."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    host.reset(opened(relay, host, client, 1, None), code)
    assert codes(client.hear()) == [(1, "cancelled")]
    client.open(3)
    relay.answer()
    asked = client.session.legs[3].route.host
    assert asked is not None
    host.reset(asked.number, code)
    assert codes(client.hear()) == [(3, "no_live_host" if code == "unknown_service" else "cancelled")]
