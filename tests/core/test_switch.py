"""The relay's switch, frame by frame: what agents say, and what they hear."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from kdispatch_protocol import frames
from kdispatch_protocol.endpoint import host_id, process_id
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.frames import frame
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.messages import Hello, Offer, Open, Opened, Reset, Trying, Welcome
from kdispatch_relay.switch.sessions import Session
from kdispatch_relay.switch.switch import AskOffer, Switch

SERVICE = "ann/web"
NO_WAIT = Limits(open_wait_start=0, open_wait_lost=0)
Said = list[tuple[str, int, int, bytes]]


class Relay:
    """A switch whose store knows one service, and the agents of the test."""

    def __init__(self, limits: Limits = NO_WAIT, memory: int = 1 << 30) -> None:
        self.now = 50.0
        self.picks: list[int] = []
        self.switch = Switch("00" * 16, self._choose, self.now, limits=limits, memory=memory)

    def _choose(self, below: int) -> int:
        return self.picks.pop(0) if self.picks else 0

    def agent(self, number: int, *, offers: bool = False) -> Peer:
        peer = Peer(self, number)
        peer.say(frame(frames.HELLO, payload=Hello(versions=[1], secret=peer.secret.hex()).encode()))
        if offers:
            peer.offer()
        peer.hear()
        return peer

    def answer(self, *, known: bool = True) -> None:
        for question in self.switch.take_questions():
            if isinstance(question, AskOffer):
                if known:
                    self.switch.offer_allowed(question, public=True, now=self.now)
                else:
                    self.switch.offer_refused(question, "not_permitted", "no", now=self.now)
            elif known:
                self.switch.opens.allowed(question.route, public=True, now=self.now)
            else:
                self.switch.opens.refused(question.route, "unknown_service", "", self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.switch.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.switch.handle_timeout(self.now)


class Peer:
    """An agent's session, played by hand."""

    def __init__(self, relay: Relay, number: int) -> None:
        self.relay = relay
        self.secret = bytes([number]) * 32
        self.process = process_id(self.secret)
        self.session: Session = relay.switch.connect(f"192.0.2.{number}", relay.now)

    def say(self, *message: bytes) -> None:
        self.relay.switch.receive_message(self.session, b"".join(message), self.relay.now)

    def hear(self) -> Said:
        message = b"".join(self.session.outbox.collect(1 << 24, self.relay.now))
        return [(frames.TYPE_NAMES[t], s, v, bytes(p)) for t, _, s, v, p in frames.decode(message)] if message else []

    def names(self) -> list[str]:
        return [name for name, *_ in self.hear()]

    def offer(self, number: int = 1) -> None:
        offer = Offer(service=SERVICE, host=host_id(self.process, SERVICE), digest="00" * 32, token="t")
        self.say(frame(frames.OFFER, number, payload=offer.encode()))
        self.relay.answer()

    def open(self, number: int = 1, **more: str) -> None:
        message = Open(service=SERVICE, uuid=f"{number:032x}", limit=1000, **more)  # type: ignore[arg-type]
        self.say(frame(frames.OPEN, number, payload=message.encode()))

    def opened(self, number: int, attempt: int = 1) -> None:
        self.say(frame(frames.OPENED, number, payload=Opened(limit=20_000, attempt=attempt).encode()))

    def reset(self, number: int, code: str = "cancelled") -> None:
        self.say(frame(frames.RESET, number, payload=Reset(code=code).encode()))

    def lose(self) -> None:
        self.relay.switch.disconnect(self.session, self.relay.now)


def code_of(said: Said) -> str:
    [(name, _, _, payload)] = said
    assert name == "RESET"
    return Reset.parse(payload).code


def connected(relay: Relay) -> tuple[Peer, Peer]:
    """A client and a host with an open stream: number 1 at the client, 2 at the host."""
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open()
    host.opened(2)
    client.hear()
    host.hear()
    return client, host


def test_hello_gets_welcome() -> None:
    """WELCOME tells the version, the relay and the budgets."""
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
    """Anything else as the first frame ends the session, with a code."""
    peer = Peer(Relay(), 1)
    with pytest.raises(RemoteProtocolError) as caught:
        peer.say(message)
    assert caught.value.code == code


def test_a_second_session_of_a_process_supersedes_the_first() -> None:
    """The newest session of a secret wins; another secret supersedes nothing."""
    relay = Relay()
    first = relay.agent(1)
    relay.agent(2)
    assert relay.switch.take_cuts() == []
    relay.agent(1)
    [cut] = relay.switch.take_cuts()
    assert (cut.session, cut.code) == (first.session, "superseded")


def test_a_superseded_session_does_not_take_the_new_offer_along() -> None:
    """A host entry belongs to the session that offered it last."""
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
    """An OFFER under another process's host id ends the session."""
    peer = Relay().agent(1)
    offer = Offer(service=SERVICE, host=host_id("00" * 16, SERVICE), digest="00" * 32)
    with pytest.raises(RemoteProtocolError):
        peer.say(frame(frames.OFFER, 1, payload=offer.encode()))


def test_offers_are_authorised_listed_and_withdrawn() -> None:
    """A host is listed after the store's yes, and until it withdraws."""
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


def test_a_refused_offer_is_reset() -> None:
    """The store's no reaches the agent with its code; a withdrawn or lost offer is not listed by a late yes."""
    relay = Relay()
    for change in ("none", "withdraw", "lose"):
        peer = relay.agent(1)
        offer = Offer(service=SERVICE, host=host_id(peer.process, SERVICE), digest="00" * 32)
        peer.say(frame(frames.OFFER, 1, payload=offer.encode()))
        if change == "none":
            relay.answer(known=False)
            assert code_of(peer.hear()) == "not_permitted"
        else:
            peer.say(frame(frames.WITHDRAW, 1)) if change == "withdraw" else peer.lose()
            relay.answer()
            assert relay.switch.registry.hosts_of(SERVICE) == []


def test_offers_are_bounded() -> None:
    """A session offers as many services as its limit, and is told about the next."""
    relay = Relay(Limits(offers=1))
    peer = relay.agent(1, offers=True)
    peer.offer(3)
    assert code_of(peer.hear()) == "busy"


def test_an_open_goes_to_the_host_without_the_clients_secrets() -> None:
    """The host's OPEN has the attempt, the client's process and a key of its own; token, pin and secret stay here."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open(token="cli_x", secret="ab" * 32, pin=host_id(host.process, SERVICE))
    [(name, number, _, payload)] = host.hear()
    message = Open.parse(payload)
    assert (name, number, message.attempt, message.process) == ("OPEN", 2, 1, client.process)
    assert (message.token, message.secret, message.pin) == (None, None, None)
    key = hmac.new(bytes.fromhex("ab" * 32), bytes.fromhex(host.process), hashlib.sha256).hexdigest()
    assert message.key == key
    [(name, number, _, payload)] = client.hear()
    trying = Trying.parse(payload)
    assert (name, number, trying.process, trying.attempt) == ("TRYING", 1, host.process, 1)


def test_early_data_is_held_until_that_host_opened() -> None:
    """Early data of the current attempt waits at the relay and comes behind OPENED; later pieces go on as DATA."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open()
    client.say(frame(frames.EARLY, 1, frames.early_value(1, 0), b"ab"))
    client.say(frame(frames.EARLY, 1, frames.early_value(1, 2), b"c"))
    assert host.names() == ["OPEN"]
    host.opened(2)
    client.say(frame(frames.EARLY, 1, frames.early_value(1, 3), b"d"), frame(frames.DATA, 1, 4, b"e"))
    assert [(n, v, p) for n, _, v, p in host.hear()] == [("DATA", 0, b"abcde")]
    assert client.names() == ["TRYING", "OPENED"]


def test_early_data_of_a_failed_attempt_is_dropped() -> None:
    """What was meant for a host that refused never reaches another."""
    relay = Relay()
    first, second = relay.agent(1, offers=True), relay.agent(3, offers=True)
    client = relay.agent(2)
    client.open()
    client.say(frame(frames.EARLY, 1, frames.early_value(1, 0), b"for the first"))
    first.reset(2, "host_refused")
    client.say(frame(frames.EARLY, 1, frames.early_value(1, 13), b"late"))
    client.say(frame(frames.EARLY, 1, frames.early_value(2, 0), b"for the second"))
    second.opened(2, attempt=2)
    assert first.names() == ["OPEN"]
    assert [(n, p) for n, _, _, p in second.hear()][1:] == [("DATA", b"for the second")]


@pytest.mark.parametrize(
    ("offset", "size", "code"),
    [(1, 1, "protocol_error"), (0, 16384, ""), (0, 16383, ""), (10, 16384, "protocol_error")],
)
def test_early_data_is_bounded_and_without_gaps(offset: int, size: int, code: str) -> None:
    """A gap, or more than 16 KiB of early data, resets the stream."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open()
    client.hear()
    client.say(frame(frames.EARLY, 1, frames.early_value(1, offset), bytes(size)))
    assert [Reset.parse(p).code for n, _, _, p in client.hear() if n == "RESET"] == ([code] if code else [])
    assert ("RESET" in host.names()) is bool(code)


def test_a_refusing_host_is_replaced_by_another() -> None:
    """Up to three hosts are tried; then the client hears the last one's code."""
    relay = Relay()
    hosts = [relay.agent(number, offers=True) for number in (1, 3, 4, 5)]
    client = relay.agent(2)
    client.open()
    for host in hosts[:3]:
        assert host.names() == ["OPEN"]
        host.reset(2, "host_refused")
    assert hosts[3].names() == []
    assert [n for n, *_ in client.hear()] == ["TRYING", "TRYING", "TRYING", "RESET"]
    assert client.session.unanswered == 0


def test_a_silent_host_is_given_up_and_avoided_until_it_speaks() -> None:
    """After 5 s another host is tried; the silent one gets no new stream until a byte came from it."""
    relay = Relay()
    silent, good = relay.agent(1, offers=True), relay.agent(3, offers=True)
    client = relay.agent(2)
    client.open()
    relay.wait(5.1)
    assert silent.names() == ["OPEN", "RESET"]
    assert good.names() == ["OPEN"]
    client.open(3)
    assert silent.names() == []
    silent.say(frame(frames.PING))
    client.open(5)
    assert silent.names() == ["PONG", "OPEN"]
    silent.opened(2)
    assert "OPENED" not in client.names()


def test_a_host_that_goes_away_while_it_is_asked_is_replaced() -> None:
    """A lost session counts as a refusal."""
    relay = Relay()
    first, second = relay.agent(1, offers=True), relay.agent(3, offers=True)
    client = relay.agent(2)
    client.open()
    first.lose()
    assert second.names() == ["OPEN"]
    second.lose()
    assert [n for n, *_ in client.hear()] == ["TRYING", "TRYING", "RESET"]


def test_without_a_host_an_open_waits_for_one_to_come_back() -> None:
    """After a relay's start, or a host's loss, an OPEN waits; a host that comes gets it."""
    relay = Relay(Limits(open_wait_start=10, open_wait_lost=3))
    client = relay.agent(2)
    client.open()
    relay.answer()
    assert client.names() == []
    host = relay.agent(1)
    host.offer()
    assert host.names() == ["OFFERED", "OPEN"]
    relay.wait(10)
    host.lose()
    assert code_of([said for said in client.hear() if said[0] == "RESET"]) == "host_timeout"
    client.open(3)
    assert client.names() == []
    relay.wait(3.1)
    assert code_of(client.hear()) == "no_live_host"


def test_a_waiting_open_can_be_given_up() -> None:
    """A client that resets, or goes away, leaves nothing waiting."""
    relay = Relay(Limits(open_wait_start=10))
    for lost in (False, True):
        client = relay.agent(2)
        client.open()
        relay.answer()
        client.lose() if lost else client.reset(1)
        entry = relay.switch.registry.get(SERVICE)
        assert entry is None or not entry.waiting
        assert client.session.unanswered == 0


def test_unknown_services_and_dead_ends_are_told() -> None:
    """The store's no, and no live host, reach the client as codes."""
    relay = Relay()
    client = relay.agent(2)
    client.open()
    relay.answer(known=False)
    assert code_of(client.hear()) == "unknown_service"
    client.open(3)
    relay.answer()
    assert code_of(client.hear()) == "no_live_host"
    assert relay.switch.registry.get(SERVICE) is None


def test_opens_are_bounded() -> None:
    """Too many unanswered opens, or streams, are answered `busy`; too many failures `rate_limited`."""
    relay = Relay(Limits(opens=1, open_wait_start=10))
    client = relay.agent(2)
    client.open(1)
    client.open(3)
    assert code_of(client.hear()) == "busy"
    relay = Relay(Limits(streams_client=0))
    client = relay.agent(2)
    client.open()
    assert code_of(client.hear()) == "busy"
    relay = Relay(Limits(failed_opens_burst=1, failed_opens_rate=1, open_wait_start=0))
    client = relay.agent(2)
    client.open(1)
    relay.answer()
    client.open(3)
    assert [Reset.parse(p).code for _, _, _, p in client.hear()] == ["no_live_host", "rate_limited"]
    relay.wait(1)
    client.open(5)
    relay.answer()
    assert code_of(client.hear()) == "no_live_host"


def test_giving_up_too_many_opens_ends_the_session() -> None:
    """Resets before an answer are limited: they cost others, and the giver nothing."""
    relay = Relay(Limits(early_resets_burst=1, early_resets_rate=0))
    host, client = relay.agent(1, offers=True), relay.agent(2)
    for number in (1, 3):
        client.open(number)
        client.reset(number)
    assert host.names() == ["OPEN", "RESET", "OPEN", "RESET"]
    [cut] = relay.switch.take_cuts()
    assert (cut.session, cut.code) == (client.session, "rate_limited")


def test_data_is_forwarded_under_the_other_number() -> None:
    """DATA, ACK and FIN pass with their values; only the stream's number changes."""
    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, b"x" * 2000), frame(frames.FIN, 1, 2000))
    assert [(n, s, v, len(p)) for n, s, v, p in host.hear()] == [("DATA", 2, 0, 2000), ("FIN", 2, 2000, 0)]
    host.say(frames.ack_frame(2, 2000, 30_000, fin=True))
    assert client.hear() == [("ACK", 1, 2000, (30_000).to_bytes(8))]


def test_a_stream_is_forgotten_when_both_ends_are_acknowledged() -> None:
    """After both ACKs with `fin` the numbers mean nothing; the ACKs themselves still go out."""
    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.FIN, 1, 0))
    assert host.names() == ["FIN"]
    host.say(frames.ack_frame(2, 0, 30_000, fin=True), frame(frames.FIN, 2, 0))
    assert client.session.legs
    client.say(frames.ack_frame(1, 0, 1000, fin=True))
    assert not client.session.legs
    assert not host.session.legs
    assert host.names() == ["ACK"]
    client.say(frame(frames.DATA, 1, 0, b"late"))
    assert host.hear() == []


@pytest.mark.parametrize(
    "message",
    [frame(frames.DATA, 1, 19_999, b"xy"), frame(frames.FIN, 1, 20_001)],
    ids=["DATA over the limit", "FIN over the limit"],
)
def test_more_than_was_granted_resets_the_stream(message: bytes) -> None:
    """A sender can't fill its receiver's queue: both ends hear `credit_exceeded`, the sessions go on."""
    relay = Relay()
    client, host = connected(relay)
    client.say(message)
    assert code_of(client.hear()) == "credit_exceeded"
    assert code_of(host.hear()) == "credit_exceeded"
    client.open(3)
    assert host.names() == ["OPEN"]


def test_frames_before_opened_break_the_streams_rules() -> None:
    """DATA or ACK before OPENED, of either side, and OPENED out of place reset the stream."""
    for message in (frame(frames.DATA, 1, 0, b"x"), frames.ack_frame(1, 0, 0, fin=False)):
        relay = Relay()
        host, client = relay.agent(1, offers=True), relay.agent(2)
        client.open()
        client.say(message)
        assert client.names() == ["TRYING", "RESET"]
        assert host.names() == ["OPEN", "RESET"]
    for attempt, limit in ((2, 20_000), (1, 5)):
        relay = Relay()
        host, client = relay.agent(1, offers=True), relay.agent(2)
        client.open()
        host.say(frame(frames.OPENED, 2, payload=Opened(limit=limit, attempt=attempt).encode()))
        assert host.names() == ["OPEN", "RESET"]
        assert client.names() == ["TRYING", "RESET"]
    relay = Relay()
    client, host = connected(relay)
    client.opened(1)
    assert code_of(client.hear()) == "protocol_error"
    assert code_of(host.hear()) == "protocol_error"


@pytest.mark.parametrize(("offset", "size", "heard"), [(1, 1, "DATA"), (2, 1, "RESET"), (1, 16384, "RESET")])
def test_early_data_behind_opened_keeps_its_rules(offset: int, size: int, heard: str) -> None:
    """Early data that comes after OPENED is still without gaps and within its 16 KiB."""
    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.EARLY, 1, frames.early_value(1, 0), b"x"))
    assert host.names() == ["DATA"]
    client.say(frame(frames.EARLY, 1, frames.early_value(1, offset), bytes(size)))
    assert host.names() == [heard]


def test_a_reset_overtakes_and_drops_what_waits() -> None:
    """RESET goes first; the stream's data that waited is forgotten, other streams' is not."""
    relay = Relay()
    client, host = connected(relay)
    client.open(3)
    host.opened(4)
    host.hear()
    client.say(frame(frames.DATA, 1, 0, b"x" * 2000), frame(frames.DATA, 3, 0, b"y" * 2000))
    client.reset(1)
    assert [(n, s) for n, s, *_ in host.hear()] == [("RESET", 2), ("DATA", 4)]
    assert host.session.queued == 0
    host.reset(2)
    assert client.names() == ["TRYING", "OPENED"]


def test_a_lost_session_resets_its_open_streams_at_the_other_end() -> None:
    """Whichever leg goes, the other end hears `resume_expired`."""
    for first in (True, False):
        relay = Relay()
        client, host = connected(relay)
        (client if first else host).lose()
        assert code_of((host if first else client).hear()) == "resume_expired"
        assert relay.switch.budget.queued == 0


def test_a_session_that_granted_too_much_is_cut() -> None:
    """When more waits for an agent than its budget and floors, it has granted more than it may."""
    relay = Relay(Limits(credit=1000, window_floor=100, open_wait_start=0))
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, bytes(1100)))
    assert relay.switch.take_cuts() == []
    client.say(frame(frames.DATA, 1, 1100, bytes(1)))
    [cut] = relay.switch.take_cuts()
    assert (cut.session, cut.code) == (host.session, "credit_exceeded")


def test_when_memory_is_short_data_is_marked_opens_are_refused_and_the_longest_queue_is_cut() -> None:
    """Above half of the process's budget all DATA is marked; above it OPEN is `busy` and the longest queue goes."""
    relay = Relay(memory=8000)
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, bytes(5000)))
    newcomer = relay.agent(7)
    assert newcomer.session.credit == relay.switch.limits.credit // 4
    client.say(frame(frames.DATA, 1, 5000, bytes(5000)))
    assert relay.switch.take_cuts()[0].session is host.session
    client.open(9)
    assert code_of(client.hear()) == "busy"
    message = b"".join(host.session.outbox.collect(5000, relay.now))
    assert [flags for _, flags, *_ in frames.decode(message)] == [frames.MARKED]


def test_frames_that_have_no_place_end_the_session() -> None:
    """A relay's frame from an agent is a session error; ATTACH and GONE are reserved and ignored."""
    peer = Relay().agent(1)
    peer.say(frame(frames.ATTACH, payload=b"{}"), frame(frames.GONE, 3), frame(frames.PONG))
    peer.reset(77)
    assert peer.hear() == []
    with pytest.raises(RemoteProtocolError):
        peer.say(frame(frames.WELCOME, payload=b"{}"))


def test_nothing_is_done_for_a_session_that_ended() -> None:
    """Frames behind the one that ended a session, and a second end, change nothing."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.lose()
    client.lose()
    client.open()
    assert host.hear() == []


def test_a_peers_text_can_not_end_a_session() -> None:
    """A RESET that the relay took fits a frame when the relay passes it on."""
    relay = Relay()
    client, host = connected(relay)
    payload = json.dumps({"code": "cancelled", "text": "\u00e9" * 8000}, ensure_ascii=False).encode()
    client.say(frame(frames.RESET, 1, payload=payload))
    assert code_of(host.hear()) == "cancelled"


def test_a_finished_stream_leaves_nothing_in_the_budget() -> None:
    """Two agents that call a stream finished while its data waits hold none of the relay's memory."""
    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, bytes(10_000)), frames.ack_frame(1, 0, 1000, fin=True))
    host.say(frames.ack_frame(2, 0, 20_000, fin=True))
    assert not host.session.legs
    assert relay.switch.budget.queued == host.session.queued == 0


def test_known_data_is_dropped_and_a_gap_resets() -> None:
    """Under one number DATA is passed on once and in order: what was passed on is dropped, a gap resets the stream."""
    relay = Relay()
    client, host = connected(relay)
    for _ in range(100):
        client.say(frame(frames.DATA, 1, 0, b"abc"))
    client.say(frame(frames.DATA, 1, 1, b"bcd"))
    assert [(v, p) for _, _, v, p in host.hear()] == [(0, b"abc"), (1, b"bcd")]
    client.say(frame(frames.DATA, 1, 5, b"x"))
    assert code_of(host.hear()) == "offset_mismatch"
    assert code_of(client.hear()) == "offset_mismatch"


def test_a_flood_of_fins_is_one_fin() -> None:
    """A repeated FIN says nothing new, and takes no memory."""
    relay = Relay()
    client, host = connected(relay)
    client.say(*[frame(frames.FIN, 1, 0)] * 1000)
    assert host.names() == ["FIN"]


def test_an_agent_that_asks_and_never_reads_is_cut() -> None:
    """Answers that wait are bounded: beyond it the session ends, once."""
    relay = Relay(Limits(control=1000))
    peer = relay.agent(1)
    relay.switch.take_touched()
    peer.say(*[frame(frames.PING)] * 62)
    relay.switch.take_touched()
    assert relay.switch.take_cuts() == []
    for _ in range(5):
        peer.say(frame(frames.PING))
        relay.switch.take_touched()
    [cut] = relay.switch.take_cuts()
    assert (cut.session, cut.code) == (peer.session, "slow_consumer")
    assert len(peer.hear()) == 67
    assert peer.session.outbox.control_size == 0


def test_a_session_that_is_both_ends_of_a_stream_leaves_no_ghost() -> None:
    """When client and host are one session, its loss dials nobody else."""
    relay = Relay()
    both, other = relay.agent(1, offers=True), relay.agent(3, offers=True)
    both.open(3)
    assert "OPEN" in both.names()
    both.lose()
    assert other.hear() == []
    assert not other.session.legs
    relay = Relay()
    both = relay.agent(1, offers=True)
    both.open(3)
    both.opened(2)
    both.lose()
    assert both.session.streams_opened == 0


def test_guessing_names_is_limited() -> None:
    """Opens and offers that the store refuses count as failures of the session."""
    relay = Relay(Limits(failed_opens_burst=2, failed_opens_rate=0))
    peer = relay.agent(1)
    for number in (1, 3, 5):
        peer.open(number)
        relay.answer(known=False)
    assert [Reset.parse(p).code for *_, p in peer.hear()] == ["unknown_service", "unknown_service", "rate_limited"]
    offer = Offer(service=SERVICE, host=host_id(peer.process, SERVICE), digest="00" * 32)
    peer.say(frame(frames.OFFER, 7, payload=offer.encode()))
    assert code_of(peer.hear()) == "rate_limited"
    relay = Relay(Limits(failed_opens_burst=1, failed_opens_rate=0))
    peer = relay.agent(1)
    peer.say(frame(frames.OFFER, 1, payload=offer.encode()))
    relay.answer(known=False)
    peer.say(frame(frames.OFFER, 3, payload=offer.encode()))
    assert [Reset.parse(p).code for *_, p in peer.hear()] == ["not_permitted", "rate_limited"]


def test_a_host_that_is_heard_again_gets_what_waits() -> None:
    """An open that waits because the only host was silent goes to it as soon as it speaks."""
    relay = Relay(Limits(open_wait_start=60, open_host=1))
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open()
    relay.wait(1.1)
    client.open(3)
    assert host.names() == ["OPEN", "RESET"]
    host.say(frame(frames.PING))
    assert host.names() == ["OPEN", "PONG"]


def test_short_memory_cuts_no_more_than_it_must() -> None:
    """Several frames in one turn cut the longest queue once, and others only if that does not suffice."""
    relay = Relay(memory=8000)
    client, host = connected(relay)
    relay.agent(9)
    for _ in range(4):
        client.say(frame(frames.DATA, 1, client.session.legs[1].next, bytes(3000)))
    assert [cut.session for cut in relay.switch.take_cuts()] == [host.session]
