"""The property tests are effective: they fail with any of these mistakes in the code."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from kdispatch_protocol.endpoint.farewells import Farewells
from kdispatch_protocol.endpoint.growth import Growth
from kdispatch_protocol.endpoint.receiving import Receiving
from kdispatch_protocol.endpoint.replay import Outbound
from kdispatch_protocol.endpoint.resume import Resumption
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import LegState as AgentLeg
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.endpoint.table import StreamTable
from kdispatch_protocol.endpoint.tombstones import Tombstones
from kdispatch_protocol.endpoint.windows import CreditBudget
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.outbox import Outbox
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer, Frame, FrameReader
from kdispatch_protocol.wire.messages import AttachEntry, reset_frame
from kdispatch_relay.switch import revocations, sessions
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.attachments import Half
from kdispatch_relay.switch.budget import Held
from kdispatch_relay.switch.claims import Account, Claims, Doubts
from kdispatch_relay.switch.offers import Offers
from kdispatch_relay.switch.passing import Passing
from kdispatch_relay.switch.registry import LiveOffer
from kdispatch_relay.switch.routes import Leg, Route, RouteState
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from tests.core import grants, test_paths
from tests.core.intents import cuts_of
from tests.core.storms import CALM, LAST_WORDS, LOSSES, PLANNED, TRUSTY, Storm
from tests.core.test_two_ends import run
from tests.core.test_windows import Credit

Patch = Callable[[Any, str, object], None]


def early_is_not_sent_again(patch: Patch) -> None:
    patch(Outbound, "rewind", lambda self: None)


def early_goes_to_any_try(patch: Patch) -> None:
    def hold_early(self: Route, attempt: int, offset: int, payload: memoryview, limits: object) -> bool:
        self.early += payload
        return True

    patch(Route, "hold_early", hold_early)


def early_is_kept(patch: Patch) -> None:
    patch(Route, "drop_early", lambda self: None)


def ack_is_swallowed(patch: Patch) -> None:
    def forward_ack(self: Leg, received: int, limit: int, *, fin: bool) -> None:
        self.limit = max(self.limit, limit)

    patch(Leg, "forward_ack", forward_ack)


def acknowledges_too_much(patch: Patch) -> None:
    def acknowledge(self: Outbound, received: int, limit: int, *, fin: bool) -> int:
        self.limit = max(self.limit, limit + 64)
        self.fin_acked = self.fin_acked or fin
        return 0

    patch(Outbound, "acknowledge", acknowledge)


def credit_as_deltas(patch: Patch) -> None:
    """An ACK states how much more may be sent, and ATTACH states none of it."""
    told: WeakKeyDictionary[Stream, int] = WeakKeyDictionary()
    make_ack, on_ack, attach = Stream.make_ack, Receiving._ack, Outbound.attach

    def made(self: Stream) -> bytes:
        ack = make_ack(self)
        if not ack:
            return ack
        (limit,) = struct.unpack("!Q", ack[16:])
        more = limit - told.get(self, limit)
        told[self] = limit
        return ack[:16] + struct.pack("!Q", max(more, 0))

    def taken(self: Receiving, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        absolute = stream.outbound.limit + frames.ack_limit(payload)
        on_ack(self, stream, flags, value, memoryview(struct.pack("!Q", absolute)), now)

    def forward_ack(self: Leg, received: int, limit: int, *, fin: bool) -> None:
        before, more, had_fin = self._ack or (0, 0, False)
        self._ack = (max(received, before), limit + more, fin or had_fin)
        self.limit += limit
        self.session.outbox.acknowledge(self)

    def attached(self: Outbound, received: int, limit: int, *, fin: bool) -> int:
        before = self.limit
        freed = attach(self, received, limit, fin=fin)
        self.limit = before
        return freed

    patch(Stream, "make_ack", made)
    patch(Receiving, "_ack", taken)
    patch(Leg, "forward_ack", forward_ack)
    patch(Outbound, "attach", attached)


def no_tombstones(patch: Patch) -> None:
    patch(Tombstones, "add", lambda self, *_, **__: None)


def old_numbers_are_taken(patch: Patch) -> None:
    """Frames under an old number still count: those of a replaced session, and those from before a switch."""
    greeted = Switch._hello

    def drop(self: Session, stream: Stream) -> None:
        if stream.leg is AgentLeg.ASKED and stream.is_client:
            self.unanswered -= 1
        stream.number, stream.leg = 0, AgentLeg.NONE

    def forget(self: StreamTable, stream: Stream, code: str) -> None:
        for session in self.sessions:
            for number in [number for number, other in session.by_number.items() if other is stream]:
                del session.by_number[number]
        forgotten(self, stream, code)

    def hello(self: Switch, session: AgentSession, type_: int, payload: memoryview) -> None:
        greeted(self, session, type_, payload)
        # The older one is not cut: its frames are handled as before.
        cuts_of(self)

    forgotten = StreamTable._forget
    patch(Session, "drop", drop)
    patch(Session, "idle", property(lambda _: True))
    patch(StreamTable, "_forget", forget)
    patch(Switch, "_hello", hello)


def old_numbers_are_taken_after_a_switch(patch: Patch) -> None:
    """A stream that has moved still accepts frames under its earlier number."""
    switch, forget = Resumption._switch, StreamTable._forget

    def switched(stream: Stream, session: Session, number: int) -> None:
        older, before = stream.session, stream.number
        switch(stream, session, number)
        older.by_number[before] = stream

    def forgotten(self: StreamTable, stream: Stream, code: str) -> None:
        for session in self.sessions:
            for number in [number for number, other in session.by_number.items() if other is stream]:
                del session.by_number[number]
        forget(self, stream, code)

    patch(Resumption, "_switch", staticmethod(switched))
    patch(StreamTable, "_forget", forgotten)
    patch(Session, "idle", property(lambda self: all(one.session is not self for one in self.by_number.values())))


def replay_is_freed_when_written(patch: Patch) -> None:
    patch(Outbound, "_remember", lambda self, chunk: None)


def fin_is_never_repeated(patch: Patch) -> None:
    """FIN has no acknowledgement: once sent, it counts as received."""
    rewind = Outbound.rewind

    def rewound(self: Outbound) -> None:
        sent = self.fin_sent
        rewind(self)
        self.fin_sent = sent

    patch(Outbound, "rewind", rewound)


def early_data_goes_to_another_host(patch: Patch) -> None:
    lost = Resumption.session_lost

    def session_lost(self: Resumption, stream: Stream, session: Session, text: str, now: float) -> bool:
        return (stream.opened or not stream.is_client) and lost(self, stream, session, text, now)

    patch(Resumption, "session_lost", session_lost)


def relay_is_thought_to_remember(patch: Patch) -> None:
    """A stream that was attached once is not attached in the next session, because the relay had it."""
    attach = Resumption._attach

    def only_new(self: Resumption, streams: list[Stream]) -> None:
        attach(self, [stream for stream in streams if not stream.attach])

    patch(Resumption, "_attach", only_new)


def attach_is_believed_twice(patch: Patch) -> None:
    """A refused or repeated ATTACH is acted on: the receiver's numbers go back."""
    join = Resumption._join

    def joined(self: Resumption, session: Session, stream: Stream, entry: AttachEntry, now: float) -> None:
        join(self, session, stream, entry, now)
        if not stream.ended:
            stream.outbound.sent = stream.outbound.base = 0

    patch(Resumption, "_join", joined)


def credit_is_kept() -> None:
    """The property test of windows.py."""
    few = settings(max_examples=100, stateful_step_count=40, database=None, phases=[Phase.generate])
    run_state_machine_as_test(Credit, settings=settings(few, report_multiple_bugs=False))


def growth_ignores_the_budget(patch: Patch) -> None:
    patch(CreditBudget, "share", lambda self, own: self.limits.window_max)


def shrinks_below_the_floor(patch: Patch) -> None:
    window = Growth.window

    def smaller(self: Growth, before: int, *others: Any) -> int:
        return window(self, before, *others) if not self._marked else before // 2

    patch(Growth, "window", smaller)


def marks_are_ignored(patch: Patch) -> None:
    note = Growth.note
    patch(Growth, "note", lambda self, flags, length, now: note(self, flags & ~frames.MARKED, length, now))


@pytest.mark.parametrize(
    ("mistake", "proof"),
    [
        (growth_ignores_the_budget, credit_is_kept),
        (shrinks_below_the_floor, credit_is_kept),
        (marks_are_ignored, test_paths.test_many_slow_downloads_settle),
        (marks_are_ignored, test_paths.test_windows_come_down_and_up_again),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_mistakes_in_windows_are_found(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Patch], None], proof: Callable[[], None]
) -> None:
    """Each of these mistakes in the growth of windows fails the test of the promise that it breaks."""
    mistake(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        proof()


def passed_on_is_not_kept(patch: Patch) -> None:
    """The sender's fast path forgets what it sent."""

    def write_fast(self: Outbound, data: bytes, end: int) -> None:
        self.sent = self.end = end

    patch(Outbound, "write_fast", write_fast)


def relay_lets_data_overtake(patch: Patch) -> None:
    """The relay's fast path does not check the outbox."""
    right = Passing.data_fast

    def data_fast(self: Passing, session: SwitchSession, flags: int, number: int, value: int, payload: Buffer) -> bool:
        leg = session.legs.get(number)
        if leg is None or leg.peer is None:
            return False
        peer, waiting = leg.peer.session, leg.peer.session.outbox
        peer.outbox = Outbox(peer.limits)
        try:
            return right(self, session, flags, number, value, payload)
        finally:
            peer.outbox = waiting

    patch(Passing, "data_fast", data_fast)


def reset_overtakes_last_words(patch: Patch) -> None:
    """The end of a program is reported at once, before its last data."""

    def begin(self: Farewells, stream: Stream, code: str, text: str, now: float, *, more: bool = False) -> None:
        self._table.fail(stream, code, text)

    patch(Farewells, "begin", begin)


def sent_last_words_count_as_there(patch: Patch) -> None:
    patch(Stream, "said", property(lambda self: self.outbound.sent == self.outbound.end))


def an_end_behind_last_words_is_forgotten(patch: Patch) -> None:
    patch(Stream, "said", property(lambda self: self.outbound.base == self.outbound.end))


def dropped_bytes_are_credited_for_ever(patch: Patch) -> None:
    """A sender that never ends is credited for each byte: a mistake that was reverted once."""
    patch(Farewells, "dropped", lambda self, stream, count, now: self._table.consume(stream, count, now))


def data_does_not_wait_for_its_message(patch: Patch) -> None:
    def receive(self: FrameReader, piece: Buffer, *, ends: bool) -> list[Frame]:
        self._held += piece
        found: list[Frame] = []
        while len(self._held) >= 16:
            word, number, value = frames.HEADER.unpack_from(self._held)
            length = word & 0xFFFFFF
            part = bytes(self._held[16 : 16 + length])
            if len(part) < length and (word >> 27 != frames.DATA or not part):
                break
            del self._held[: 16 + len(part)]
            found.append((word >> 27, word >> 24 & 7, number, value, memoryview(part)))
            if len(part) < length:
                self._held[:0] = frames.header(frames.DATA, 0, number, value + len(part), length - len(part))
                break
        return found

    patch(FrameReader, "receive", receive)


def a_half_is_not_given_back(patch: Patch) -> None:
    """The memory of a dropped half is not given back."""

    def pop(self: Held[int, Any], key: int) -> None:
        if isinstance(self[key], Half):
            dict.__delitem__(self, key)
        else:
            right(self, key)

    right = Held.__delitem__
    patch(Held, "__delitem__", pop)


def answers_are_not_counted(patch: Patch) -> None:
    """Waiting control frames are not counted in the budget."""
    patch(sessions, "Outbox", lambda limits, _: Outbox(limits))


def early_is_counted_twice(patch: Patch) -> None:
    """Early data is counted on arrival, and once more at each piece."""
    right = Route.hold_early

    def hold_early(self: Route, attempt: int, offset: int, payload: memoryview, limits: Limits) -> bool:
        kept = right(self, attempt, offset, payload, limits)
        self.client.session.hold(len(self.early))
        return kept

    patch(Route, "hold_early", hold_early)


def one_token_ends_all_offers(patch: Patch) -> None:
    """The mistake of issue 17, A1: every number of the host is reset, and the host stays listed by one of them."""

    def end_offer(switch: Switch, offer: LiveOffer, code: str, text: str) -> None:
        numbers = [(one.session, one.number) for one in offer.host.offers]
        switch.registry.remove(offer)
        for session, number in numbers:
            del session.offers[number]
            session.outbox.send(reset_frame(number, code, text))
            switch.touch(session)

    patch(revocations, "_end_offer", end_offer)


def a_lost_session_leaves_a_ghost(patch: Patch) -> None:
    """A lost session removes one offer of each host, although its process made several there."""
    right = Offers.session_lost

    def session_lost(self: Offers, session: AgentSession, now: float) -> None:
        by_host = {offer.host: number for number, offer in session.offers.items() if offer is not None}
        session.offers = {number: session.offers[number] for number in by_host.values()}
        right(self, session, now)

    patch(Offers, "session_lost", session_lost)


def an_ended_stream_stays_indexed(patch: Patch) -> None:
    right = Claims.free

    def free(self: Claims, thing: LiveOffer | Leg | Half) -> None:
        if not (isinstance(thing, Leg) and thing.route.state is RouteState.OPEN):
            right(self, thing)

    patch(Claims, "free", free)


def a_late_answer_counts(patch: Patch) -> None:
    """A store's answer from before a change is believed after it."""
    patch(Doubts, "add", lambda self, scope: None)


def a_place_is_not_given_back(patch: Patch) -> None:
    """A stream that finished well still counts among those of its source."""
    right = Account.remove

    def remove(self: Account, source: str, *, public: bool) -> None:
        before = dict(self.of_source)
        right(self, source, public=public)
        self.of_source = before

    patch(Account, "remove", remove)


@pytest.mark.parametrize(
    "mistake",
    [
        one_token_ends_all_offers,
        a_lost_session_leaves_a_ghost,
        an_ended_stream_stays_indexed,
        a_late_answer_counts,
        a_place_is_not_given_back,
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_mistakes_in_the_books_are_found(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Patch], None]
) -> None:
    """Registry and indexes are checked after every step: each of these mistakes is found within 400 worlds."""
    mistake(monkeypatch.setattr)
    with pytest.raises(AssertionError) as found:  # noqa: PT012 - whichever check sees it first
        for seed in range(400):
            grants.run(seed)
    print(f"{mistake.__name__}: seed {seed}: {found.value!r}")


@pytest.mark.parametrize(
    ("mistake", "storm"),
    [
        (a_half_is_not_given_back, LOSSES),
        (data_does_not_wait_for_its_message, LOSSES),
        (answers_are_not_counted, CALM),
        (early_is_counted_twice, CALM),
        (early_is_not_sent_again, CALM),
        (early_goes_to_any_try, CALM),
        (early_is_kept, CALM),
        (ack_is_swallowed, CALM),
        (acknowledges_too_much, CALM),
        (credit_as_deltas, LOSSES),
        (no_tombstones, LOSSES),
        (old_numbers_are_taken, LOSSES),
        (old_numbers_are_taken_after_a_switch, PLANNED),
        (replay_is_freed_when_written, LOSSES),
        (fin_is_never_repeated, LOSSES),
        (early_data_goes_to_another_host, LOSSES),
        (relay_is_thought_to_remember, LOSSES),
        (attach_is_believed_twice, TRUSTY),
        (passed_on_is_not_kept, LOSSES),
        (relay_lets_data_overtake, CALM),
        (reset_overtakes_last_words, LAST_WORDS),
        (sent_last_words_count_as_there, LAST_WORDS),
        (an_end_behind_last_words_is_forgotten, LAST_WORDS),
        (dropped_bytes_are_credited_for_ever, LAST_WORDS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_mistakes_are_found(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Patch], None], storm: Storm
) -> None:
    """The property tests find each of these mistakes within 4,000 runs."""
    mistake(monkeypatch.setattr)
    with pytest.raises(Exception, match=r".*") as found:  # noqa: PT012 - whichever check sees it first
        for seed in range(4000):
            run(seed, storm)
    print(f"{mistake.__name__}: {found.value!r}")


def test_without_a_mistake_nothing_is_found() -> None:
    """The worlds that find mistakes pass with the code as it is."""
    for seed in range(40):
        for storm in (CALM, LOSSES, TRUSTY, LAST_WORDS):
            run(seed, storm)
