"""The fast paths of data: what they send is what an outbox would have sent, and it overtakes nothing."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.replay import Outbound
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.endpoint.windows import CreditBudget, Inbound
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer, Frame, decode, frame
from kdispatch_protocol.wire.messages import Reset
from tests.core.agents import NO_WAIT, Peer, Relay, connected
from tests.core.conversation import Conversation
from tests.core.wire import is_alone

SMALL = Limits(data=500, replay=5000, window_floor=400, unsent=1000, quantum=300, early=400)
Plain = tuple[int, int, int, int, bytes]
#: What happens to a stream: something is written, the peer acknowledges so many of the bytes sent, and allows more.
ops = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 700), st.just(0)),
        st.tuples(st.just("ack"), st.integers(0, 100), st.sampled_from([0, 1, 100, 500, 3000])),
        st.tuples(st.sampled_from(["eof", "data", "fin", "gone", "reset", "lost"]), st.just(0), st.just(0)),
    ),
    max_size=25,
)


class Sender:
    """An agent with one open stream, whose socket is never full. ``fast``: it sends by ``write_fast`` where it can."""

    def __init__(self, *, fast: bool, host: bool) -> None:
        self.talk = Conversation(limits=SMALL, offer=host)
        self.stream: Stream = self.talk.host() if host else self.talk.client()
        self.stream.outbound.limit = 1500
        self.number = self.stream.number
        self.fast = fast
        self.passed = 0
        self.said: list[Plain] = []

    def do(self, what: str, size: int, more: int) -> None:
        talk, stream, out = self.talk, self.stream, self.stream.outbound
        if not talk.endpoint.ready and what not in {"write", "eof"}:
            return  # the session is lost
        match what:
            case "write" if not out.eof:
                self.write(bytes([size % 251]) * size)
            case "ack":
                received = out.base + (out.sent - out.base) * size // 100
                talk.hear(frames.ack_frame(self.number, received, out.limit + more, fin=False))
            case "eof":
                talk.table.write_eof(stream)
            case "data" if not stream.inbound.finished:
                talk.hear(frame(frames.DATA, self.number, stream.inbound.received, b"word"))
            case "fin":
                talk.hear(frame(frames.FIN, self.number, stream.inbound.received))
            case "gone":
                talk.hear(frame(frames.GONE, self.number))
            case "reset":
                talk.hear(frame(frames.RESET, self.number, payload=Reset(code="cancelled").encode()))
            case "lost":
                talk.lose()
            case _:
                pass
        self.flush()

    def write(self, data: bytes) -> None:
        table = self.talk.table
        assert not self.talk.session.outbox
        self.talk.session.send_fast = self.send_fast if self.fast else None
        if not table.write_fast(self.stream, data):
            table.write(self.stream, data)

    def send_fast(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        self.passed += 1
        self.said += plain(decode(frame(frames.DATA, number, value, bytes(payload), flags)))
        return True

    def flush(self) -> None:
        while parts := self.talk.endpoint.take_batch(self.talk.session, 1 << 20, self.talk.now):
            self.said += plain(decode(b"".join(parts)))

    @property
    def state(self) -> tuple[object, ...]:
        out, table = self.stream.outbound, self.talk.table
        events = [type(event) for event in self.talk.events()]
        offsets = out.base, out.sent, out.end, out.limit, out.eof, out.fin_sent, out.unsent
        return (*offsets, self.stream.state, self.stream.leg, self.stream.writer_paused, table.replay_held, events)


def plain(received: list[Frame]) -> list[Plain]:
    return [(type_, flags, stream, value, bytes(payload)) for type_, flags, stream, value, payload in received]


def same_bytes(said: list[Plain]) -> list[Plain]:
    """Joins DATA that the general path cut in two, at the size of a frame or at the limit."""
    out: list[Plain] = []
    for type_, flags, stream, value, payload in said:
        if out and type_ == frames.DATA == out[-1][0] and out[-1][3] + len(out[-1][4]) == value:
            out[-1] = (type_, flags, stream, out[-1][3], out[-1][4] + payload)
        else:
            out.append((type_, flags, stream, value, payload))
    return out


@pytest.mark.slow
@given(st.booleans(), ops)
@settings(max_examples=400)
def test_a_sender_says_the_same_either_way(host: bool, happens: list[tuple[str, int, int]]) -> None:
    """With ``write_fast``, a sender's frames, offsets, budget, pauses and events are those of the general path."""
    fast, general = Sender(fast=True, host=host), Sender(fast=False, host=host)
    for op in happens:
        fast.do(*op)
        general.do(*op)
        assert same_bytes(fast.said) == same_bytes(general.said)
        assert fast.state == general.state


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=12), st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=200)
def test_what_was_passed_on_can_be_repeated(writes: list[tuple[bool, int]], limit: int, acked: int) -> None:
    """Bytes that were passed on are kept until they are acknowledged, in order with those that waited."""
    out = Outbound()
    out.limit = limit
    written, sent = b"", b""
    for passed, size in writes:
        data = bytes([len(written) % 251]) * size
        if passed and out.sent == out.end and out.end + size <= limit:
            assert sent == written  # nothing waited before it
            out.write_fast(data, out.end + size)
            sent += data
        else:
            out.write(data)
            parts: list[Buffer] = []
            out.take(1 << 20, parts)
            sent += b"".join(parts)
        written += data
    assert (out.sent, out.end, sent) == (min(limit, len(written)), len(written), written[:limit])
    out.acknowledge(min(acked, out.sent), limit, fin=False)
    out.limit = 1 << 20
    out.rewind()
    again: list[Buffer] = []
    out.take(1 << 20, again)
    assert b"".join(again) == written[min(acked, limit) :]


# --- at a receiver -------------------------------------------------------------------------------------


class Receiver:
    """An agent with one open stream, whose program takes what arrives. ``fast``: by ``data_fast`` where it can.

    Without a ``sink`` data arrives as events.
    """

    def __init__(self, *, fast: bool, host: bool, sink: bool = True) -> None:
        self.talk = Conversation(limits=SMALL, offer=host)
        self.stream: Stream = self.talk.host() if host else self.talk.client()
        self.fast = fast
        self.taken = 0
        self.read: list[bytes] = []
        self.happened: list[object] = []
        self.said: list[tuple[str, int, int, bytes]] = []
        if sink:
            self.talk.table.sink = lambda _, data: self.read.append(bytes(data))

    def hear(self, message: bytes) -> None:
        """Handle one read of the agent's connection."""
        table, session = self.talk.table, self.talk.session
        received = decode(message)
        if self.fast and is_alone(received):
            _, flags, number, value, payload = received[0]
            stream = self.talk.endpoint.receiving.data_fast(session, flags, number, value, len(payload), self.talk.now)
            if stream is not None:
                self.taken += 1
                table.deliver(stream, payload)
                table.acknowledge_later(stream, self.talk.now)
                return
        self.talk.hear(message)

    def do(self, what: str, size: int, more: int) -> None:
        talk, stream = self.talk, self.stream
        if talk.session not in talk.table.sessions:
            return  # it is lost
        start = stream.inbound.received
        number = stream.number or 99
        match what:
            case "data":
                self.hear(frame(frames.DATA, number, start, bytes([size % 251]) * size, more & 3))
            case "again":
                self.hear(frame(frames.DATA, number, max(0, start - more), b"d" * size))
            case "gap":
                self.hear(frame(frames.DATA, number, start + 1 + more, b"gap"))
            case "other":
                self.hear(frame(frames.DATA, number + 2, 0, b"of another stream"))
            case "fin":
                self.hear(frame(frames.FIN, number, start))
            case "take" if not stream.ended:
                talk.table.consume(stream, (start - stream.inbound.consumed) * size // 700, talk.now)
            case "close":
                talk.table.close(stream, talk.now)
            case "gone":
                self.hear(frame(frames.GONE, number))
            case "lost":
                talk.lose()
            case _:
                talk.wait(more / 10)
        self.said += talk.said()
        self.note_events()

    def note_events(self) -> None:
        for event in self.talk.events():
            if isinstance(event, events.DataReceived):
                self.read.append(bytes(event.data))
            else:
                self.happened.append(type(event))

    @property
    def state(self) -> tuple[object, ...]:
        inbound, table = self.stream.inbound, self.talk.table
        offsets = inbound.received, inbound.consumed, inbound.limit, inbound.window, inbound.final
        ends = self.stream.state, self.stream.leg, self.stream.ack_timer is not None
        return (*offsets, *ends, table.budget.promised, table.timers.next_deadline(), self.read, self.happened)


heard = st.tuples(
    st.sampled_from(["data"] * 6 + ["take"] * 3 + ["again", "gap", "other", "fin", "close", "gone", "lost", "wait"]),
    st.integers(1, 700),
    st.integers(0, 5),
)


@pytest.mark.slow
@given(st.booleans(), st.lists(heard, max_size=25))
@settings(max_examples=400)
def test_a_receiver_does_the_same_either_way(host: bool, happens: list[tuple[str, int, int]]) -> None:
    """With ``data_fast`` or a sink, what a program reads and a receiver sends and counts is as on the general path."""
    fast, general = Receiver(fast=True, host=host), Receiver(fast=False, host=host)
    by_events = Receiver(fast=False, host=host, sink=False)
    for op in happens:
        for receiver in (fast, general, by_events):
            receiver.do(*op)
        assert fast.said == general.said == by_events.said
        assert fast.state == general.state == by_events.state


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 300), st.booleans()), max_size=20), st.integers(0, 900))
def test_bytes_are_accepted_the_same_either_way(data: list[tuple[int, int, bool]], end: int) -> None:
    """``accept_fast`` counts like ``accept``, or returns false and changes nothing."""
    halves = [Inbound(CreditBudget(SMALL.credit, SMALL)) for _ in range(2)]
    fast, general = halves
    for gap, size, grants in data:
        for half in halves:
            if grants:
                half.consume(half.received - half.consumed)
                half.grant()
            if half.received >= end and half.final is None:
                half.finish(half.received)
        offset = max(0, general.received + gap * (gap % 2))
        before = counted(fast)
        if fast.accept_fast(offset, size):
            assert general.accept(offset, size) == 0
        else:
            assert counted(fast) == before
            for half in halves:
                with contextlib.suppress(RemoteProtocolError):
                    half.accept(offset, size)
        assert counted(fast) == counted(general)


def counted(half: Inbound) -> tuple[object, ...]:
    return half.received, half.consumed, half.limit, half.final, half.budget.promised, half.unacknowledged


# --- at the relay --------------------------------------------------------------------------------------


class Socket:
    """The socket of one session that a relay's fast path writes to."""

    def __init__(self, peer: Peer, log: list[tuple[int, bytes]]) -> None:
        self.peer, self.log = peer, log
        self.full = False
        peer.session.send_fast = self.send_fast

    def send_fast(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        if not self.full:
            self.log.append((id(self.peer), frame(frames.DATA, number, value, bytes(payload), flags)))
        return not self.full


class Wired:
    """A relay with an open stream, whose answers go out at once unless a socket is full."""

    def __init__(self, *, fast: bool) -> None:
        self.relay = Relay(NO_WAIT)
        self.client, self.host = connected(self.relay)
        self.client.open(3)
        self.host.opened(4)
        self.client.hear(), self.host.hear()
        self.fast = fast
        self.passed = 0
        self.log: list[tuple[int, bytes]] = []
        self.sockets = [Socket(peer, self.log) for peer in (self.client, self.host)]
        self.heard: dict[int, list[Plain]] = {0: [], 1: []}

    def allows(self, who: int, number: int, end: int) -> bool:
        """Whether an agent may send bytes below ``end``. Of a read that breaks the rule the fast path sends more."""
        leg = (self.client, self.host)[who].session.legs.get(number)
        return leg is None or end <= leg.limit

    def say(self, who: int, message: bytes) -> None:
        """Handle one read from this agent at the relay."""
        relay, session = self.relay, (self.client, self.host)[who].session
        received = decode(message)
        alone = is_alone(received)
        while self.fast and received and received[0][0] == frames.DATA and (alone or len(received[0][4]) > 4096):
            if not relay.switch.passing.data_fast(session, *received[0][1:]):
                break
            self.passed += 1
            del received[0]
        if received:
            relay.switch.receive_frames(session, received, relay.now)
        self.flush()

    def flush(self) -> None:
        for place, peer in enumerate((self.client, self.host)):
            self.heard[place] += [f for key, data in self.log if key == id(peer) for f in plain(decode(data))]
        self.log.clear()
        for place, peer in enumerate((self.client, self.host)):
            if not self.sockets[place].full:
                message = b"".join(peer.session.outbox.collect(1 << 24, self.relay.now))
                self.heard[place] += plain(decode(message)) if message else []

    @property
    def state(self) -> tuple[object, ...]:
        sessions = (self.client.session, self.host.session)
        legs = [(leg.number, leg.next, leg.limit, leg.fin_passed) for s in sessions for leg in s.legs.values()]
        return legs, [(s.queued, s.doomed) for s in sessions], self.relay.switch.budget.queued


said = st.one_of(
    st.tuples(st.just("data"), st.integers(0, 1), st.sampled_from([1, 1, 1, 50, 9000])),
    st.tuples(st.sampled_from(["ack", "fin", "other", "full", "free", "gap", "again", "two", "large", "reset"]),
              st.integers(0, 1), st.integers(1, 5)),
    st.tuples(st.just("lose"), st.integers(0, 1), st.just(0)),
)  # fmt: skip


def speak(wired: Wired, what: str, who: int, size: int, sent: dict[int, int]) -> None:
    number = (1, 2)[who]
    if (wired.client, wired.host)[who].session.ended:
        return
    match what:
        case "data":
            wired.say(who, frame(frames.DATA, number, sent[who], b"d" * size, size & frames.MARKED))
            sent[who] += size
        case "two":
            wired.say(
                who, frame(frames.DATA, number, sent[who], b"d") + frame(frames.DATA, number, sent[who] + 1, b"e")
            )
            sent[who] += 2
        case "large" if wired.allows(who, number, sent[who] + 15_000):  # AgentLink.link_read passes on one by one
            wired.say(
                who, b"".join(frame(frames.DATA, number, sent[who] + at, b"l" * 5000) for at in (0, 5000, 10_000))
            )
            sent[who] += 15_000
        case "gap" | "again":
            wired.say(who, frame(frames.DATA, number, max(0, sent[who] + (1 if what == "gap" else -1)), b"x"))
        case "other":
            wired.say(who, frame(frames.DATA, number + 2, 0, b"of another stream"))
        case "ack":
            wired.say(who, frames.ack_frame(number, 0, 20_000 * size, fin=False))
        case "fin":
            wired.say(who, frame(frames.FIN, number, sent[who]))
        case "reset":
            wired.say(who, frame(frames.RESET, number, payload=Reset(code="cancelled").encode()))
        case "full" | "free":
            wired.sockets[who].full = what == "full"
            wired.flush()
        case "lose":
            (wired.client, wired.host)[who].lose()
            wired.flush()
        case _:
            wired.say(who, frame(frames.PING))


@pytest.mark.slow
@given(st.lists(said, max_size=25))
@settings(max_examples=400)
def test_a_relay_says_the_same_either_way(happens: list[tuple[str, int, int]]) -> None:
    """With ``data_fast``, both agents get the same frames in the same order as through the outboxes."""
    fast, general = Wired(fast=True), Wired(fast=False)
    offsets = {0: 0, 1: 0}, {0: 0, 1: 0}
    for what, who, size in happens:
        speak(fast, what, who, size, offsets[0])
        speak(general, what, who, size, offsets[1])
        assert fast.heard == general.heard
        assert fast.state == general.state


@pytest.mark.parametrize(
    "obstacle", ["nothing", "queue", "ack", "control", "full", "no socket", "limit", "gap", "tight", "stalled", "lost"]
)
def test_the_relay_passes_on_only_what_nothing_stands_before(obstacle: str) -> None:
    """DATA takes the general path if anything waits for its receiver, or if it has to be checked."""
    wired = Wired(fast=True)
    relay, client, host = wired.relay, wired.client, wired.host
    switch = relay.switch
    value = 0
    match obstacle:
        case "queue":
            client.say(frame(frames.DATA, 3, 0, b"of another stream"))
        case "ack":
            client.say(frames.ack_frame(3, 0, 2000, fin=False))
        case "control":
            host.session.outbox.send(frame(frames.PING))
        case "full":
            wired.sockets[1].full = True
        case "no socket":
            host.session.send_fast = None
        case "limit":
            client.session.legs[1].limit = 4
        case "gap":
            value = 1
        case "tight":
            switch.budget.queued = switch.budget.total
        case "stalled":
            client.session.stalled = True
        case "lost":
            host.lose()
        case _:
            pass
    assert switch.passing.data_fast(client.session, 0, 1, value, b"hello") is (obstacle == "nothing")
    assert bool(wired.log) is (obstacle == "nothing")
    assert obstacle == "lost" or client.session.legs[1].next == (5 if obstacle == "nothing" else 0)


def test_the_fast_paths_are_taken() -> None:
    """If nothing stands in the way, the tests above compare two paths, and not one with itself."""
    sender, receiver, wired = Sender(fast=True, host=True), Receiver(fast=True, host=False), Wired(fast=True)
    sender.do("write", 100, 0)
    receiver.do("data", 100, 0)
    speak(wired, "data", 0, 50, {0: 0, 1: 0})
    assert (sender.passed, receiver.taken, wired.passed) == (1, 1, 1)
