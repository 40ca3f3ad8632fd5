"""The relay's switch: sessions and offers, frame by frame."""

from __future__ import annotations

import pytest

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import QUIET, Attach, AttachEntry, Hello, Offer, Open, Welcome
from tests.core.agents import SERVICE, Peer, Relay, code_of
from tests.core.intents import cuts_of


def test_hello_gets_welcome() -> None:
    """WELCOME states the version, the relay and the budgets."""
    relay = Relay()
    peer = Peer(relay, 1)
    peer.say(frame(frames.HELLO, payload=Hello(versions=[9, 1], secret=peer.secret.hex()).encode()))
    [(name, _, _, payload)] = peer.hear()
    welcome = Welcome.parse(payload)
    assert (name, welcome.version, welcome.relay) == ("WELCOME", 1, "00" * 16)
    assert welcome.credit == relay.switch.limits.credit
    assert peer.session.process == peer.process


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (frame(frames.PING), "protocol_error"),
        (frame(frames.HELLO, payload=Hello(versions=[2], secret="00" * 32).encode()), "version_unsupported"),
        (frame(frames.HELLO, payload=b"{}"), "protocol_error"),
        (b"x", "protocol_error"),
    ],
)
def test_a_session_begins_with_a_valid_hello(message: bytes, code: str) -> None:
    """Any other first frame than a valid HELLO ends the session, with a code."""
    peer = Peer(Relay(), 1)
    with pytest.raises(RemoteProtocolError) as caught:
        peer.say(message)
    assert caught.value.code == code


@pytest.mark.parametrize("type_", [frames.OFFER, frames.OPEN, frames.ATTACH])
def test_a_quiet_session_carries_nothing(type_: int) -> None:
    """The relay announces the quiet capability, and a session that uses it and then asks for something is ended."""
    relay = Relay()
    peer = Peer(relay, 1)
    hello = Hello(versions=[1], secret=peer.secret.hex(), capabilities=[QUIET])
    peer.say(frame(frames.HELLO, payload=hello.encode()))
    [(_, _, _, welcome)] = peer.hear()
    assert QUIET in Welcome.parse(welcome).capabilities
    offer = Offer(service=SERVICE, host=host_id(peer.process, SERVICE), digest="00" * 32)
    asked = Open(service=SERVICE, uuid="11" * 16, limit=1 << 16)
    entry = AttachEntry(
        uuid="11" * 16, service=SERVICE, role="client", peer="22" * 16, number=1, received=0, limit=0, attach=1,
        proof="33" * 32,
    )  # fmt: skip
    payloads = {frames.OFFER: offer.encode(), frames.OPEN: asked.encode(), frames.ATTACH: Attach.of([entry]).encode()}
    with pytest.raises(RemoteProtocolError) as caught:
        peer.say(frame(type_, 0 if type_ == frames.ATTACH else 1, payload=payloads[type_]))
    assert caught.value.code == "protocol_error"


def test_a_second_session_of_a_process_supersedes_the_first() -> None:
    """The newest session of a secret replaces the earlier one; another secret replaces none."""
    relay = Relay()
    first = relay.agent(1)
    relay.agent(2)
    assert cuts_of(relay.switch) == []
    relay.agent(1)
    [cut] = cuts_of(relay.switch)
    assert (cut.session, cut.code) == (first.session, "superseded")


def test_a_superseded_session_does_not_take_the_new_offer_along() -> None:
    """The end of a superseded session does not remove the offer of the newer one."""
    relay = Relay()
    old = relay.agent(1, offers=True)
    new = relay.agent(1, offers=True)
    old.lose()
    assert [host.session for host in relay.switch.registry.hosts_of(SERVICE)] == [new.session]


@pytest.mark.parametrize("frame_type", [frames.OFFER, frames.OPEN])
def test_numbers_are_odd_and_grow(frame_type: int) -> None:
    """An agent's even or used number ends its session."""
    for number in (2, 1):
        peer = Relay().agent(1, offers=True)
        with pytest.raises(RemoteProtocolError):
            peer.offer(number) if frame_type == frames.OFFER else peer.open(number)


def test_a_host_id_is_the_processs_own() -> None:
    """An OFFER with another process's host id ends the session."""
    peer = Relay().agent(1)
    offer = Offer(service=SERVICE, host=host_id("00" * 16, SERVICE), digest="00" * 32)
    with pytest.raises(RemoteProtocolError):
        peer.say(frame(frames.OFFER, 1, payload=offer.encode()))


def test_offers_are_authorised_listed_and_withdrawn() -> None:
    """A host is listed after the store's grant, until it withdraws."""
    relay = Relay()
    peer = relay.agent(1)
    offer = Offer(service=SERVICE, host=host_id(peer.process, SERVICE), digest="00" * 32)
    peer.say(frame(frames.OFFER, 1, payload=offer.encode()))
    assert relay.switch.registry.hosts_of(SERVICE) == []
    relay.answer()
    assert peer.names() == ["OFFERED"]
    assert [host.id for host in relay.switch.registry.hosts_of(SERVICE)] == [offer.host]
    peer.say(frame(frames.WITHDRAW, 1))
    assert relay.switch.registry.hosts_of(SERVICE) == []


def test_offers_are_bounded() -> None:
    """A session offers as many services as its limit, and the next offer is refused."""
    relay = Relay(Limits(offers=1))
    peer = relay.agent(1, offers=True)
    peer.offer(3)
    assert code_of(peer.hear()) == "busy"


def test_frames_that_have_no_place_end_the_session() -> None:
    """A frame that only a relay sends is a session error if an agent sends it."""
    peer = Relay().agent(1)
    peer.say(frame(frames.PONG))
    peer.reset(77)
    peer.say(frame(frames.GONE, 79))
    assert peer.hear() == []
    for type_, number in ((frames.WELCOME, 0), (frames.TRYING, 3), (frames.ATTACH, 0)):
        with pytest.raises(RemoteProtocolError):
            peer.say(frame(type_, number, payload=b"{}"))


def test_nothing_is_done_for_a_session_that_ended() -> None:
    """Frames after the one that ended a session, and a second end, change nothing."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.lose()
    client.lose()
    client.open()
    assert host.hear() == []


def test_an_agent_that_asks_and_never_reads_is_cut() -> None:
    """Waiting answers are limited: above the limit the session ends, once."""
    relay = Relay(Limits(control=1000))
    peer = relay.agent(1)
    relay.switch.take_touched()
    peer.say(*[frame(frames.PING)] * 62)
    relay.switch.take_touched()
    assert cuts_of(relay.switch) == []
    for _ in range(5):
        peer.say(frame(frames.PING))
        relay.switch.take_touched()
    [cut] = cuts_of(relay.switch)
    assert (cut.session, cut.code) == (peer.session, "slow_consumer")
    assert len(peer.hear()) == 67
    assert peer.session.outbox.control_size == 0
