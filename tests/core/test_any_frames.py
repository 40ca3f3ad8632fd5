"""An agent or a relay may send anything in any order: the other side's tables stay right, and nothing is left over."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.endpoint.states import LegState
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Attach, Hello, Open, Opened, Reset, Trying
from kdispatch_relay.switch.intents import AskAttach, AskOffer, Question
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.revocations import withdraw_host
from kdispatch_relay.switch.routes import RouteState
from tests.core.agents import SERVICE, Peer, Relay, revoke_service
from tests.core.conversation import Conversation
from tests.core.intents import cuts_of, questions_of
from tests.core.resuming import HOST, client, entry, hear, host, lose
from tests.core.test_switch_attachments import entry as half

SEEDS = st.integers(0, 2**64 - 1)
#: `make check` plays a part of the cases, under coverage.
CASES = 200 // (8 if os.environ.get("KDISPATCH_QUICK") else 1)
_CODES = ("closed", "unknown_stream", "peer_restarted", "bad_proof", "cancelled", "unknown_service")


# --- what a relay may say to an agent -----------------------------------------------------------


def _said_to_an_agent(talk: Conversation, stream: Stream, rng: random.Random) -> Callable[[], object]:
    """One event from the relay, the program or the clock."""
    number = stream.number or rng.choice((1, 2, 3, 5))
    received, out, fin = stream.inbound.received, stream.outbound, rng.random() < 0.3
    peer = {
        "attach": stream.peer_attach + rng.choice((0, 1, 2)),
        "received": rng.choice((0, out.base, out.sent, out.end)),
        "fin": fin,
        "limit": rng.choice((0, 5, 65536)),
    }
    trying = Trying(attempt=rng.choice((1, 2)), process=rng.choice((HOST, "66" * 16)), host="33" * 16)
    opened = Opened(limit=65536, attempt=stream.attempt or 1)
    unread = received - stream.inbound.consumed
    return rng.choice(
        (
            lambda: lose(talk),
            lambda: talk.hear(frame(frames.GONE, number)),
            lambda: hear(talk, entry(stream, **peer)),
            lambda: hear(talk, entry(stream, **peer)),
            lambda: hear(talk, entry(stream, number=None)),
            lambda: talk.hear(frame(frames.DATA, number, rng.choice((received, 0)), bytes(rng.choice((1, 1000))))),
            lambda: talk.hear(frame(frames.FIN, number, received)),
            lambda: talk.hear(frames.ack_frame(number, rng.choice((out.base, out.sent)), 1 << 20, fin=fin)),
            lambda: None if out.eof else talk.table.write(stream, bytes(rng.choice((1, 100, 5000)))),
            lambda: talk.table.write_eof(stream),
            lambda: talk.table.close(stream, talk.now),
            lambda: talk.hear(frame(frames.RESET, number, payload=Reset(code=rng.choice(_CODES)).encode())),
            lambda: talk.wait(rng.choice((0.1, 1, 20, 61))),
            lambda: talk.hear(frame(frames.TRYING, number, payload=trying.encode())),
            lambda: talk.hear(frame(frames.OPENED, number, payload=opened.encode())),
            lambda: talk.table.consumed(stream, unread, talk.now),
        )
    )


@settings(max_examples=CASES)
@given(seed=SEEDS)
def test_an_agents_books_stay_right(seed: int) -> None:
    """Credit, replay, unanswered opens and graces match the streams' state, and nothing waits for ever."""
    rng = random.Random(seed)
    talk = Conversation(offer=True)
    streams = [client(talk, opened=rng.random() < 0.6), host(talk, uuid="44" * 16)]
    table = talk.table
    for _ in range(30):
        try:
            _said_to_an_agent(talk, rng.choice(streams), rng)()
        except RemoteProtocolError:
            lose(talk)
        if rng.random() < 0.7:
            talk.said()
        here = list(table.by_uuid.values())
        assert table.replay_held == sum(stream.outbound.size for stream in here)
        assert table.budget.promised == sum(stream.inbound.limit - stream.inbound.received for stream in here)
        assert talk.session.unanswered == sum(stream.leg is LegState.ASKED and stream.is_client for stream in here)
        assert set(talk.session.by_number.values()) <= set(here)
        assert all(stream.number == number for number, stream in talk.session.by_number.items())
        assert all(
            (stream.grace is not None) is (stream.opened and stream.leg is not LegState.JOINED) for stream in here
        )
    for _ in range(30):
        talk.wait(500)
    assert all(stream.leg is LegState.JOINED for stream in table.by_uuid.values())


# --- what agents may say to a relay -------------------------------------------------------------


class _Crowd:
    """Three agents that send anything, a store that answers late and in any order, and sessions that end."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.relay = Relay(Limits(open_wait_start=0, open_wait_lost=3))
        self.peers = {number: self.relay.agent(number, offers=number == 1) for number in (1, 2, 3)}
        self.numbers = dict.fromkeys(self.peers, 11)
        self.pending: list[Question] = []

    def new_session(self, number: int) -> None:
        """Begin another session of the agent, whatever happened to the last one; it may claim to be a successor."""
        peer = self.peers[number] = Peer(self.relay, number)
        self.numbers[number] = 1
        before = self.rng.choice(([], [bytes([self.rng.choice((1, 2, 3))] * 32).hex()]))
        hello = Hello(versions=[1], secret=peer.secret.hex(), predecessors=before)
        peer.say(frame(frames.HELLO, payload=hello.encode()))

    def something(self) -> None:
        """One random event."""
        rng = self.rng
        who = rng.choice(list(self.peers))
        peer = self.peers[who]
        try:
            self._said(who, peer)()
        except RemoteProtocolError:
            peer.lose()
        if rng.random() < 0.5:
            self.peers[who].hear()
        if rng.random() < 0.5:
            self._answers()
        self._end_sessions()

    def _said(self, who: int, peer: Peer) -> Callable[[], object]:
        rng, session = self.rng, peer.session
        number = rng.choice((*session.legs, *session.halves, 1, 2))
        leg = session.legs.get(number)
        uuid = f"{rng.choice((1, 2)):032x}"
        self.numbers[who] += 8
        new = self.numbers[who]
        others = [other.process for other in self.peers.values()]
        entries = [
            half(
                peer, rng.choice(("client", "host")), rng.choice(others), new + 2 * i,
                uuid=f"{rng.choice((1, 2)):032x}", service=rng.choice((SERVICE, SERVICE, "ann/x")),
                received=rng.choice((0, 5)), limit=rng.choice((5, 1000)),
            )
            for i in range(rng.choice((1, 2, 3)))
        ]  # fmt: skip
        wish = Open(service=SERVICE, uuid=uuid, limit=1000)
        refusal = Reset(code=rng.choice(_CODES), uuid=uuid, process=rng.choice(others))
        attach = frame(frames.ATTACH, payload=Attach.of(entries).encode())
        return rng.choice(
            (
                peer.lose,
                lambda: self.new_session(who),
                lambda: peer.say(attach),
                lambda: peer.say(attach),
                lambda: peer.say(frame(frames.OPEN, new, payload=wish.encode())),
                lambda: peer.opened(number),
                lambda: peer.reset(number, rng.choice(_CODES)),
                lambda: peer.say(frame(frames.DATA, number, leg.next if leg else 0, bytes(rng.choice((1, 100, 2000))))),
                lambda: peer.say(frames.ack_frame(number, 5, 4000, fin=rng.random() < 0.5)),
                lambda: peer.say(frame(frames.FIN, number, 5)),
                lambda: peer.say(frame(frames.RESET, payload=refusal.encode())),
                lambda: peer.offer(new),
                self._taken_back,
                lambda: self.relay.wait(rng.choice((0.1, 5, 16))),
            )
        )

    def _taken_back(self) -> None:
        if self.rng.random() < 0.3:
            revoke_service(self.relay.switch, SERVICE)
        elif self.rng.random() < 0.3:
            for listed in self.relay.switch.registry.hosts_of(SERVICE):
                withdraw_host(self.relay.switch, listed)

    def _answers(self) -> None:
        self.pending += questions_of(self.relay.switch)
        self.rng.shuffle(self.pending)
        for _ in range(min(self.rng.randrange(3), len(self.pending))):
            self._answer(self.pending.pop(), yes=self.rng.random() < 0.7)

    def _answer(self, question: Question, *, yes: bool) -> None:
        switch, now = self.relay.switch, self.relay.now
        if isinstance(question, AskOffer):
            if yes:
                switch.offers.allowed(question, Terms(public=True), now)
            else:
                switch.offers.refused(question, "not_permitted", "", now=now)
        elif isinstance(question, AskAttach):
            if yes:
                switch.attachments.allowed(question, now)
            else:
                switch.attachments.refused(question, "unknown_service", "", now)
        elif yes:
            switch.opens.allowed(question.route, Terms(public=True), now)
        else:
            switch.opens.refused(question.route, "unknown_service", "", now)

    def _end_sessions(self) -> None:
        switch = self.relay.switch
        for _ in range(3):
            switch.take_touched()
            for cut in cuts_of(switch):
                switch.disconnect(cut.session, self.relay.now)
            for number, peer in self.peers.items():
                if peer.session.ended:
                    self.new_session(number)

    def check(self) -> None:
        """The relay's counts match what its sessions hold, and each stream is one route."""
        switch = self.relay.switch
        for session in switch.by_process.values():
            legs = list(session.legs.values())
            mine = [leg for leg in legs if leg.route.client is leg]
            assert session.streams_opened == len(mine)
            assert session.unanswered == sum(leg.route.state is not RouteState.OPEN for leg in mine)
            assert session.queued == sum(len(waiting[3]) for leg in legs for waiting in (leg._queue or ()))
            running = [leg for leg in legs if leg.route.state is RouteState.OPEN]
            assert all(leg.peer is not None and leg.peer.session.legs[leg.peer.number] is leg.peer for leg in running)
            assert set(session.streams.values()) <= set(running)
        for listed in switch.registry.hosts_of(SERVICE):
            legs = [leg for session in switch.by_process.values() for leg in session.legs.values()]
            assert listed.streams == sum(leg.route.host is leg and leg.route.host_entry is listed for leg in legs)
        waiting = switch.attachments._waiting
        assert all(one.session.halves.get(one.number) is one for one in waiting.values())
        assert sum(map(len, switch.attachments._by_peer.values())) == len(waiting)


@settings(max_examples=CASES)
@given(seed=SEEDS)
def test_a_relays_books_stay_right(seed: int) -> None:
    """Legs, halves, queues and counts agree after any frames of agents; when all agents are gone, nothing is left."""
    crowd = _Crowd(random.Random(seed))
    for _ in range(60):
        crowd.something()
        crowd.check()
    for peer in crowd.peers.values():
        peer.lose()
    switch = crowd.relay.switch
    assert len(switch.attachments) == 0
    assert not switch.attachments.restarted
    assert switch.budget.queued == 0
