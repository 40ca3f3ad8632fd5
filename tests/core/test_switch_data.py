"""The relay's switch: what passes through an open stream, and what ends it."""

from __future__ import annotations

import json

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer
from tests.core.agents import SERVICE, Relay, code_of, connected
from tests.core.intents import cuts_of


def test_a_refused_offer_is_reset() -> None:
    """A refusal by the store reaches the agent with its code; a late grant does not list a withdrawn or lost offer."""
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


def test_data_is_forwarded_under_the_other_number() -> None:
    """DATA, ACK and FIN pass with their values; only the stream's number changes."""
    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, b"x" * 2000), frame(frames.FIN, 1, 2000))
    assert [(n, s, v, len(p)) for n, s, v, p in host.hear()] == [("DATA", 2, 0, 2000), ("FIN", 2, 2000, 0)]
    host.say(frames.ack_frame(2, 2000, 30_000, fin=True))
    assert client.hear() == [("ACK", 1, 2000, (30_000).to_bytes(8))]


def test_a_stream_is_forgotten_when_both_ends_are_acknowledged() -> None:
    """After both ACKs with `fin`, the numbers are forgotten; the ACKs themselves are still sent."""
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
    """A sender cannot exceed its receiver's credit: both ends get `credit_exceeded`, and the sessions go on."""
    relay = Relay()
    client, host = connected(relay)
    client.say(message)
    assert code_of(client.hear()) == "credit_exceeded"
    assert code_of(host.hear()) == "credit_exceeded"
    client.open(3)
    assert host.names() == ["OPEN"]


def test_a_reset_overtakes_and_drops_what_waits() -> None:
    """RESET goes first and drops the stream's waiting data, but not that of other streams."""
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


def test_a_session_that_granted_too_much_is_cut() -> None:
    """An agent for which more waits than its credit and floors has granted too much, and its session is cut."""
    relay = Relay(Limits(credit=1000, window_floor=100, open_wait_start=0))
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, bytes(1100)))
    assert cuts_of(relay.switch) == []
    client.say(frame(frames.DATA, 1, 1100, bytes(1)))
    [cut] = cuts_of(relay.switch)
    assert (cut.session, cut.code) == (host.session, "credit_exceeded")


def test_a_peers_text_can_not_end_a_session() -> None:
    """A RESET that the relay accepted fits a frame when the relay passes it on."""
    relay = Relay()
    client, host = connected(relay)
    payload = json.dumps({"code": "cancelled", "text": "\u00e9" * 8000}, ensure_ascii=False).encode()
    client.say(frame(frames.RESET, 1, payload=payload))
    assert code_of(host.hear()) == "cancelled"


def test_a_finished_stream_leaves_nothing_in_the_budget() -> None:
    """Two agents that end a stream while its data waits hold no memory of the relay."""
    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.DATA, 1, 0, bytes(10_000)), frames.ack_frame(1, 0, 1000, fin=True))
    host.say(frames.ack_frame(2, 0, 20_000, fin=True))
    assert not host.session.legs
    assert relay.switch.budget.queued == host.session.queued == 0


def test_known_data_is_dropped_and_a_gap_resets() -> None:
    """Under one number, DATA is passed on once and in order: known bytes are dropped, and a gap resets the stream."""
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
    """A repeated FIN changes nothing and takes no memory."""
    relay = Relay()
    client, host = connected(relay)
    client.say(*[frame(frames.FIN, 1, 0)] * 1000)
    assert host.names() == ["FIN"]


def test_a_session_that_is_both_ends_of_a_stream_leaves_no_ghost() -> None:
    """When client and host are one session, its loss calls no other host."""
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


def test_short_memory_cuts_no_more_than_it_must() -> None:
    """Several frames in one read cut the longest queue once, and others only if that does not free enough."""
    relay = Relay(memory=8000)
    client, host = connected(relay)
    relay.agent(9)
    for _ in range(4):
        client.say(frame(frames.DATA, 1, client.session.legs[1].next, bytes(3000)))
    assert [cut.session for cut in cuts_of(relay.switch)] == [host.session]


def test_a_slow_session_gets_frames_in_pieces() -> None:
    """With small batches a frame is cut to its stream's turn, and `blocked` is set only on the last piece."""
    relay = Relay()
    client, host = connected(relay)
    payload = bytes(range(256)) * 40
    client.say(frames.header(frames.DATA, frames.BLOCKED, 1, 0, len(payload)) + payload, frame(frames.FIN, 1, 10_240))
    pieces, kinds = bytearray(), []
    while message := b"".join(host.session.outbox.collect(4000, relay.now)):
        for type_, flags, _, value, piece in frames.decode(message):
            assert value == len(pieces)
            pieces += piece
            kinds.append((type_, flags, len(piece)))
    assert pieces == payload
    assert [kind for kind, *_ in kinds] == [frames.DATA] * (len(kinds) - 1) + [frames.FIN]
    assert all(1024 <= size <= 4096 for *_, size in kinds[:-2])
    assert [flags for _, flags, _ in kinds[:-1]] == [0] * (len(kinds) - 2) + [frames.BLOCKED]
    assert host.session.queued == relay.switch.budget.queued == 0


def test_counters() -> None:
    """The switch counts opens, their failures, streams by how they ended, and the bytes that it passed on."""
    relay = Relay()
    client, host = connected(relay)
    counters = relay.switch.counters
    assert (counters.sessions, counters.opens, counters.opened) == (2, 1, 1)
    client.say(frame(frames.DATA, 1, 0, b"x" * 2000))
    host.say(frame(frames.DATA, 2, 0, b"y" * 500))
    assert (counters.sent, counters.received) == (0, 0)  # while the stream runs
    client.reset(1)
    client.open(3)
    client.reset(3)
    assert (counters.opens, counters.opened, counters.sent, counters.received) == (2, 1, 2000, 500)
    assert (dict(counters.ended), dict(counters.failed)) == ({"cancelled": 1}, {"cancelled": 1})


def test_counted_codes_are_bounded() -> None:
    """Whatever codes an agent makes up, the switch counts them under one key."""
    relay = Relay()
    client, host = connected(relay)
    client.reset(1, "made_up")
    client.open(3)
    host.opened(4)
    client.reset(3, "invented")
    assert dict(relay.switch.counters.ended) == {"other": 2}
