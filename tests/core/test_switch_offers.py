"""The relay's switch: the registry holds exactly the live, authorised offers, however many a process makes."""

from __future__ import annotations

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.tokens import token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Hello, Offer, Reset
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.revocations import Claim, doubt, revoke, withdraw_host
from tests.core.agents import SERVICE, Peer, Relay, Said, code_of
from tests.core.intents import questions_of
from tests.core.ledger import check_books

WHY = ("revoked", "The token was revoked.")


def codes(said: Said) -> list[tuple[int, str]]:
    return sorted((number, Reset.parse(payload).code) for name, number, _, payload in said if name == "RESET")


def taken_back(relay: Relay, token: str) -> None:
    doubt(relay.switch, SERVICE)
    revoke(relay.switch, {Claim(SERVICE, "host", token_digest(token)): WHY}, relay.now)
    check_books(relay.switch)


def listed(relay: Relay) -> list[Peer | object]:
    check_books(relay.switch)
    return [host.session for host in relay.switch.registry.hosts_of(SERVICE)]


def moved(relay: Relay, number: int) -> Peer:
    """The next session of the process, which moves to it."""
    peer = Peer(relay, number)
    hello = Hello(versions=[1], secret=peer.secret.hex(), mode="move")
    peer.say(frame(frames.HELLO, payload=hello.encode()))
    peer.hear()
    return peer


def is_reached(relay: Relay, host: Peer) -> bool:
    """Whether an OPEN reaches the host in this session."""
    client = relay.agent(99)
    client.open()
    relay.answer()
    heard = [name for name in host.names() if name == "OPEN"]
    client.lose()
    return bool(heard)


@pytest.mark.parametrize("first", ["a", "b"])
def test_each_token_ends_its_own_offer(first: str) -> None:
    """Revoking a token ends the offer that rests on it; after the other offer's token, the host is gone."""
    relay = Relay()
    host = relay.agent(1)
    host.offer(1, "a")
    host.offer(3, "b")
    host.hear()
    second = "b" if first == "a" else "a"
    numbers = {"a": 1, "b": 3}
    taken_back(relay, first)
    assert codes(host.hear()) == [(numbers[first], "revoked")]
    assert listed(relay) == [host.session] and is_reached(relay, host)
    taken_back(relay, second)
    assert (numbers[second], "revoked") in codes(host.hear())
    assert listed(relay) == [] and not is_reached(relay, host)
    host.lose()
    assert relay.switch.registry.host(host_id(host.process, SERVICE)) is None


def test_a_host_is_shown_by_its_newest_offer() -> None:
    """Token, labels and digest are those of the newest offer; when that ends, those of the one before."""
    relay = Relay()
    host = relay.agent(1)
    for number, token in ((1, "a"), (3, "b")):
        offer = Offer(
            service=SERVICE, host=host_id(host.process, SERVICE), digest=f"{number:02x}" * 32, token=token,
            labels={"is": token},
        )  # fmt: skip
        host.say(frame(frames.OFFER, number, payload=offer.encode()))
        relay.answer()
    [shown] = relay.switch.registry.hosts_of(SERVICE)
    assert (shown.rests, shown.labels, shown.digest) == (token_digest("b"), {"is": "b"}, "03" * 32)
    host.say(frame(frames.WITHDRAW, 3))
    [shown] = relay.switch.registry.hosts_of(SERVICE)
    assert (shown.rests, shown.labels, shown.digest) == (token_digest("a"), {"is": "a"}, "01" * 32)
    assert is_reached(relay, host)


@pytest.mark.parametrize("order", [(1, 3), (3, 1)])
def test_a_host_is_listed_until_its_last_offer_is_withdrawn(order: tuple[int, int]) -> None:
    """WITHDRAW ends one number; with the last one the host leaves the list, and its quota is free again."""
    relay = Relay()
    relay.terms = Terms(public=True, hosts=1)
    host = relay.agent(1)
    host.offer(1)
    host.offer(3)
    host.say(frame(frames.WITHDRAW, order[0]))
    assert listed(relay) == [host.session]
    host.say(frame(frames.WITHDRAW, order[1]))
    assert listed(relay) == []
    other = relay.agent(2)
    other.offer()
    assert listed(relay) == [other.session]


@pytest.mark.parametrize("how", ["revoked", "withdrawn", "lost"])
def test_the_older_session_stands_in_again(how: str) -> None:
    """If only the newer offer of a moving process ends, the host is reached in the older session again."""
    relay = Relay()
    old = relay.agent(1)
    old.offer(1, "a")
    new = moved(relay, 1)
    new.offer(1, "b")
    assert listed(relay) == [new.session]
    if how == "revoked":
        taken_back(relay, "b")
    elif how == "withdrawn":
        new.say(frame(frames.WITHDRAW, 1))
    else:
        new.lose()
    assert listed(relay) == [old.session] and is_reached(relay, old)


def test_an_older_session_does_not_come_first() -> None:
    """An offer in the session that is being left, allowed or made late, does not replace the newer offer."""
    relay = Relay()
    old = relay.agent(1)
    answer, relay.answer = relay.answer, lambda **_: 0  # type: ignore[method-assign]
    old.offer(1, "a")
    late = questions_of(relay.switch)
    relay.answer = answer  # type: ignore[method-assign]
    new = moved(relay, 1)
    new.offer(1, "b")
    for question in late:
        relay.switch.intents.put(question)
    relay.answer()
    old.offer(3, "c")
    assert listed(relay) == [new.session] and is_reached(relay, new)
    taken_back(relay, "b")
    assert listed(relay) == [old.session]


def test_an_offer_whose_session_ends_while_it_is_looked_up() -> None:
    """The late answer for an offer whose session ended lists no host."""
    relay = Relay()
    host = relay.agent(1)
    answer, relay.answer = relay.answer, lambda **_: 0  # type: ignore[method-assign]
    host.offer()
    host.lose()
    relay.answer = answer  # type: ignore[method-assign]
    relay.answer()
    assert listed(relay) == []


def test_streams_are_counted_over_all_offers() -> None:
    """A host listed by another offer keeps its streams; a host that comes back has those that go on."""
    relay = Relay()
    host, client = relay.agent(1), relay.agent(2)
    host.offer(1, "a")
    client.open()
    host.opened(2)
    host.offer(3, "a")
    host.say(frame(frames.WITHDRAW, 1))
    assert [one.streams for one in relay.switch.registry.hosts_of(SERVICE)] == [1]
    host.say(frame(frames.WITHDRAW, 3))
    assert listed(relay) == []
    host.offer(5, "a")
    check_books(relay.switch)
    assert [one.streams for one in relay.switch.registry.hosts_of(SERVICE)] == [1]


def test_a_withdrawn_host_leaves_by_all_its_numbers() -> None:
    """Withdrawing a host ends each offer of the process, in each of its sessions."""
    relay = Relay()
    old = relay.agent(1)
    old.offer(1, "a")
    old.offer(3, "b")
    new = moved(relay, 1)
    new.offer(1, "a")
    for peer in (old, new):
        peer.hear()
    [host] = relay.switch.registry.hosts_of(SERVICE)
    withdraw_host(relay.switch, host)
    assert codes(old.hear()) == [(1, "withdrawn"), (3, "withdrawn")]
    assert codes(new.hear()) == [(1, "withdrawn")]
    assert listed(relay) == [] and not old.session.offers and not new.session.offers


def test_offers_that_are_taken_back_before_their_answer() -> None:
    """Withdrawn offers count in the limit on look-ups until the store has answered."""

    def back(peer: Peer, number: int) -> None:
        offer = Offer(service=SERVICE, host=host_id(peer.process, SERVICE), digest="00" * 32, token="t")
        peer.say(frame(frames.OFFER, number, payload=offer.encode()), frame(frames.WITHDRAW, number))

    relay = Relay(Limits(offers=3))
    peer = relay.agent(1)
    before = peer.session.held
    for number in (1, 3, 5, 7):
        back(peer, number)
    assert len(questions_of(relay.switch)) == 3
    assert code_of(peer.hear()) == "busy"
    assert peer.session.held - before > 3 * 8000

    again = relay.agent(2)
    before = again.session.held
    for number in range(1, 41, 2):
        back(again, number)
        relay.answer(known=number % 4 == 1)
    assert "busy" not in str(again.hear())
    assert again.session.held == before
