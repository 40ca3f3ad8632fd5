"""The relay's switch: opening a stream, from OPEN to the last attempt."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Hello, Offer, Open, Opened, Reset, Trying
from kdispatch_relay.switch.routes import Leg
from tests.core.agents import SERVICE, Peer, Relay, code_of, connected
from tests.core.intents import cuts_of


def test_an_open_goes_to_the_host_without_the_clients_secrets() -> None:
    """The host's OPEN has the attempt, the client's process and its own key, but not the token, pin and secret."""
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


def test_hosts_are_sent_to_first() -> None:
    """Frames for the host go out first, because the client waits for the host."""
    for order in (True, False):
        relay = Relay()
        first, second = relay.agent(1, offers=order), relay.agent(2, offers=not order)
        host, client = (first, second) if order else (second, first)
        client.open()
        assert relay.switch.take_touched() == [host.session, client.session]


def test_an_open_among_few_frames_goes_out_at_once() -> None:
    """An OPEN among few frames is sent before the rest is done, and after anything that waits before it."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    sent: list[list[str]] = []
    host.session.flush = lambda: sent.append(host.names())
    client.open(1)
    assert (sent, host.names()) == ([], ["OPEN"])
    relay.switch.opens.few = True
    client.open(3)
    host.session.outbox.send(frame(frames.PING))
    client.open(5)
    assert sent == [["OPEN"], ["PING", "OPEN"]]


def test_early_data_is_held_until_that_host_opened() -> None:
    """The relay holds early data until OPENED, then sends it; later pieces follow as DATA."""
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
    """Early data for a host that refused never reaches another one."""
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
    """Up to three hosts are tried; then the client gets the last one's code."""
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
    """After 5 s another host is tried; the silent one gets a PING, and no new stream until a byte arrives from it."""
    relay = Relay()
    silent, good = relay.agent(1, offers=True), relay.agent(3, offers=True)
    client = relay.agent(2)
    client.open()
    relay.wait(5.1)
    assert silent.names() == ["OPEN", "RESET", "PING"]
    assert good.names() == ["OPEN"]
    client.open(3)
    assert silent.names() == []
    silent.say(frame(frames.PONG))
    client.open(5)
    assert silent.names() == ["OPEN"]
    silent.opened(2)
    assert "OPENED" not in client.names()


def test_a_host_that_goes_away_while_it_is_asked_is_replaced() -> None:
    """A lost session counts as a refusal by the host."""
    relay = Relay()
    first, second = relay.agent(1, offers=True), relay.agent(3, offers=True)
    client = relay.agent(2)
    client.open()
    first.lose()
    assert second.names() == ["OPEN"]
    second.lose()
    assert [n for n, *_ in client.hear()] == ["TRYING", "TRYING", "RESET"]


def test_without_a_host_an_open_waits_for_one_to_come_back() -> None:
    """After a relay's start, or the loss of a host, an OPEN waits, and goes to a host that comes."""
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
    relay.answer()
    assert client.names() == []
    relay.wait(3.1)
    assert code_of(client.hear()) == "no_live_host"


def test_a_waiting_open_can_be_given_up() -> None:
    """A client that resets or leaves leaves no waiting open behind."""
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
    """A refusal by the store, and a missing host, reach the client as codes."""
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
    """Too many pending opens, or streams, are answered `busy`; too many failures, `rate_limited`."""
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
    """Resets before an answer are limited, because they cost others and not the client that sends them."""
    relay = Relay(Limits(early_resets_burst=1, early_resets_rate=0))
    host, client = relay.agent(1, offers=True), relay.agent(2)
    for number in (1, 3):
        client.open(number)
        client.reset(number)
    assert host.names() == ["OPEN", "RESET", "OPEN", "RESET"]
    [cut] = cuts_of(relay.switch)
    assert (cut.session, cut.code) == (client.session, "rate_limited")


def test_frames_before_opened_break_the_streams_rules() -> None:
    """DATA or ACK before OPENED, from either side, and an unexpected OPENED reset the stream."""
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
    """Early data after OPENED still has no gaps and stays within 16 KiB."""
    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.EARLY, 1, frames.early_value(1, 0), b"x"))
    assert host.names() == ["DATA"]
    client.say(frame(frames.EARLY, 1, frames.early_value(1, offset), bytes(size)))
    assert host.names() == [heard]


def test_a_lost_session_is_told_to_the_other_end_of_its_streams() -> None:
    """When either leg is lost, the other end gets GONE."""
    for first in (True, False):
        relay = Relay()
        client, host = connected(relay)
        (client if first else host).lose()
        other, number = (host, 2) if first else (client, 1)
        assert other.hear() == [("GONE", number, 0, b"")]
        assert relay.switch.budget.queued == 0


def test_when_memory_is_short_data_is_marked_opens_are_refused_and_the_longest_queue_is_cut() -> None:
    """Above half of the budget all DATA is marked; above all of it OPEN is `busy` and the longest queue is cut."""
    relay = Relay(memory=8000)
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, bytes(5000)))
    newcomer = relay.agent(7)
    assert newcomer.session.credit == relay.switch.limits.credit // 4
    client.say(frame(frames.DATA, 1, 5000, bytes(5000)))
    assert cuts_of(relay.switch)[0].session is host.session
    client.open(9)
    assert code_of(client.hear()) == "busy"
    message = b"".join(host.session.outbox.collect(5000, relay.now))
    assert {flags for _, flags, *_ in frames.decode(message)} == {frames.MARKED}


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
    """An open that waits because the only host was silent goes to the host as soon as it sends something."""
    relay = Relay(Limits(open_wait_start=60, open_host=1))
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open()
    relay.wait(1.1)
    client.open(3)
    assert host.names() == ["OPEN", "RESET", "PING"]
    host.say(frame(frames.PONG))
    assert host.names() == ["OPEN"]


def test_a_host_wakes_those_who_may_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OPEN pinned to one host is not tried again for each other host that offers."""
    relay = Relay(Limits())
    gone, client = relay.agent(1, offers=True), relay.agent(2)
    gone.lose()
    client.open(pin=host_id(gone.process, SERVICE))
    relay.answer()
    client.hear()
    tried = []
    monkeypatch.setattr(relay.switch.registry, "pick", lambda *asked: tried.append(asked))
    relay.agent(3, offers=True)
    assert not tried
    relay.agent(1, offers=True)
    assert len(tried) == 1


def test_opens_in_a_newer_session_look_at_no_other_stream() -> None:
    """While an agent moves, an OPEN finds its stream in the older session without a scan of all streams."""

    class Unseen(dict[int, Leg]):
        def values(self) -> NoReturn:
            raise AssertionError("all streams were looked at")

    relay = Relay()
    host, older = relay.agent(1, offers=True), relay.agent(2)
    older.open(1)
    relay.answer()
    assert [name for name, *_ in host.hear()] == ["OPEN"]
    older.session.legs = Unseen(older.session.legs)
    newer = Peer(relay, 2)
    greeting = Hello(versions=[1], secret=newer.secret.hex(), mode="move")
    newer.say(frame(frames.HELLO, payload=greeting.encode()))
    newer.open(3)
    relay.answer()
    assert [name for name, *_ in host.hear()] == ["OPEN"]
    newer.say(frame(frames.OPEN, 5, payload=Open(service=SERVICE, uuid=f"{1:032x}", limit=1000).encode()))
    assert [name for name, *_ in host.hear()] == ["RESET", "OPEN"]  # an earlier attempt of the same stream is cancelled


def test_an_unknown_kind_of_flow() -> None:
    """An OPEN of a kind that the relay does not know is refused and asks no host; ``stream`` is as none."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open(1, kind="datagram")
    assert code_of(client.hear()) == "bad_request"
    assert host.hear() == []
    client.open(3, kind="stream")
    assert [name for name, *_ in host.hear()] == ["OPEN"]
