"""The relay's switch: deleted services and withdrawn hosts leave nothing behind."""

from __future__ import annotations

import random

import pytest

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Reset
from kdispatch_relay.switch import registry
from kdispatch_relay.switch.revocations import withdraw_host
from tests.core.agents import SERVICE, Peer, Relay, Said, connected, revoke_service
from tests.core.conversation import OFFER, Conversation
from tests.core.intents import questions_of


def codes(said: Said) -> list[tuple[int, str]]:
    return [(number, Reset.parse(payload).code) for name, number, _, payload in said if name == "RESET"]


def withdraw(relay: Relay) -> None:
    [host] = relay.switch.registry.hosts_of(SERVICE)
    withdraw_host(relay.switch, host)


def test_a_deleted_service_ends_offers_and_streams_at_both_ends() -> None:
    """The offer's number and both ends of each stream get ``revoked``; an OPEN is looked up again."""
    relay = Relay()
    client, host = connected(relay)
    revoke_service(relay.switch, SERVICE)
    assert codes(client.hear()) == [(1, "revoked")]
    assert sorted(codes(host.hear())) == [(1, "revoked"), (2, "revoked")]
    assert relay.switch.registry.get(SERVICE) is None
    client.open(3)
    relay.answer(known=False)
    assert codes(client.hear()) == [(3, "unknown_service")]


def test_opens_of_a_deleted_service_are_refused() -> None:
    """An open that is looked up, tried or waiting ends with ``unknown_service``, and an asked host gets a reset."""
    relay = Relay(Limits())
    host, tried = relay.agent(1, offers=True), relay.agent(2)
    tried.open()
    revoke_service(relay.switch, SERVICE)
    assert codes(tried.hear()) == [(1, "unknown_service")]
    assert sorted(codes(host.hear())) == [(1, "revoked"), (2, "revoked")]
    client = relay.agent(3)
    client.open()
    relay.answer()  # it waits for a host now
    client.open(3)  # and this one is public, and waits too
    revoke_service(relay.switch, SERVICE)
    client.open(5)
    revoke_service(relay.switch, SERVICE)  # while it is looked up
    relay.answer()
    assert sorted(codes(client.hear())) == [(1, "unknown_service"), (3, "unknown_service"), (5, "unknown_service")]
    assert relay.switch.next_deadline() is None


def test_other_services_go_on() -> None:
    """A deletion affects only its own service."""
    relay = Relay()
    client, host = connected(relay)
    revoke_service(relay.switch, "ann/other")
    client.say(frame(frames.DATA, 1, 0, b"x"))
    assert host.names() == ["DATA"]
    assert client.names() == []
    assert len(relay.switch.registry.hosts_of(SERVICE)) == 1


def test_a_withdrawn_host_keeps_its_streams() -> None:
    """A withdrawn host leaves the list and is told so; its stream goes on, and an open finds no host."""
    relay = Relay()
    client, host = connected(relay)
    withdraw(relay)
    assert codes(host.hear()) == [(1, "withdrawn")]
    client.say(frame(frames.DATA, 1, 0, b"x"))
    assert host.names() == ["DATA"]
    client.open(3)
    assert codes(client.hear()) == [(3, "no_live_host")]


def test_a_withdrawn_host_is_not_let_back() -> None:
    """If the RESET was lost with the session, the host is still refused, without a look-up."""
    relay = Relay()
    host = relay.agent(1, offers=True)
    withdraw(relay)
    host.lose()
    again = relay.agent(1)
    again.offer()
    assert codes(again.hear()) == [(1, "withdrawn")]
    assert relay.switch.registry.hosts_of(SERVICE) == [] and not again.session.offers


def test_an_offer_that_is_looked_up_while_its_host_is_withdrawn() -> None:
    """A second offer of the host whose look-up ends after the withdrawal is refused."""
    relay = Relay()
    host = relay.agent(1, offers=True)
    answer, relay.answer = relay.answer, lambda **_: 0  # type: ignore[method-assign]
    host.offer(3)
    withdraw(relay)
    answer()
    assert sorted(codes(host.hear())) == [(1, "withdrawn"), (3, "withdrawn")]
    assert relay.switch.registry.hosts_of(SERVICE) == [] and not host.session.offers


def test_every_number_of_a_host_hears_it() -> None:
    """An older offer that a newer one has replaced is ended, too."""
    relay = Relay()
    host = relay.agent(1, offers=True)
    host.offer(3)
    host.hear()
    withdraw(relay)
    assert sorted(codes(host.hear())) == [(1, "withdrawn"), (3, "withdrawn")]
    assert not host.session.offers


def test_the_memory_of_withdrawn_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many, the oldest ids are forgotten first."""
    monkeypatch.setattr(registry, "_WITHDRAWN", 3)
    table = Relay().switch.registry
    for name in "abcd":
        table.withdraw(name)
    assert [table.is_withdrawn(name) for name in "abcd"] == [False, True, True, True]


@pytest.mark.parametrize("code", ["withdrawn", "revoked"])
def test_an_agent_hears_that_its_offer_ended(code: str) -> None:
    """A RESET after OFFERED ends the offer, and the next session does not repeat it."""
    talk = Conversation(offer=True)
    [(_, number, _, _)] = talk.said()
    talk.hear(frame(frames.OFFERED, number, payload=b'{"host":"' + OFFER.host.encode() + b'"}'))
    talk.hear(frame(frames.RESET, number, payload=Reset(code=code, text="why").encode()))
    [refused] = [event for event in talk.events() if isinstance(event, events.OfferRefused)]
    assert (refused.code, refused.text) == (code, "why")
    talk.lose()
    talk.connect()
    assert not talk.endpoint._offers


@pytest.mark.parametrize("seed", range(60))
def test_a_deletion_leaves_nothing(seed: int) -> None:
    """In any state of its streams, the service leaves no leg, timer, waiting route, count or queued byte."""
    rng = random.Random(seed)
    relay = Relay(Limits())
    hosts = [relay.agent(n, offers=True) for n in range(1, 4)]
    clients = [relay.agent(n) for n in range(11, 14)]
    for number in range(1, 25, 2):
        _something_happens(rng, relay, hosts, clients, number)
    if rng.random() < 0.5:
        for host in relay.switch.registry.hosts_of(SERVICE)[:2]:
            withdraw_host(relay.switch, host)
    revoke_service(relay.switch, SERVICE)
    questions_of(relay.switch)
    for peer in (*hosts, *clients):
        session = peer.session
        assert not session.legs and not session.offers and session.queued == 0
        assert session.unanswered == 0 and session.streams_opened == 0
        peer.hear()
        assert not session.outbox
    assert relay.switch.budget.queued == 0
    assert relay.switch.next_deadline() is None
    assert relay.switch.registry.get(SERVICE) is None
    assert not relay.switch.registry._hosts


def _something_happens(rng: random.Random, relay: Relay, hosts: list[Peer], clients: list[Peer], number: int) -> None:
    client = rng.choice(clients)
    client.open(number)
    if rng.random() < 0.8:
        relay.answer()
    leg = client.session.legs.get(number)
    if leg is None or leg.route.host is None:
        return
    asked = leg.route.host
    host = next(peer for peer in hosts if peer.session is asked.session)
    if rng.random() < 0.3:
        client.say(frame(frames.EARLY, number, frames.early_value(1, 0), b"early"))
    elif rng.random() < 0.3:
        host.reset(asked.number, "host_refused")
    elif rng.random() < 0.8:
        host.opened(asked.number, leg.route.attempt)
        client.say(frame(frames.DATA, number, 0, bytes(rng.randrange(1, 900))))
        if rng.random() < 0.5:
            client.say(frame(frames.FIN, number, leg.next))
        if rng.random() < 0.3:
            withdraw_host(relay.switch, relay.switch.registry.hosts_of(SERVICE)[0])
