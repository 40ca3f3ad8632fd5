"""An agent's endpoint, frame by frame: what the relay says, and what the agent answers."""

from __future__ import annotations

import pytest

from kdispatch_protocol import events, frames
from kdispatch_protocol.endpoint import Endpoint, host_id, process_id
from kdispatch_protocol.errors import LocalProtocolError, RemoteProtocolError
from kdispatch_protocol.events import Event
from kdispatch_protocol.frames import frame
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.messages import Goaway, Offer, Offered, Open, Opened, Reset, Trying, Welcome
from kdispatch_protocol.states import State
from kdispatch_protocol.streams import Stream

SECRET = bytes(32)
SERVICE = "ann/web"
OFFER = Offer(service=SERVICE, host=host_id(process_id(SECRET), SERVICE), digest="00" * 32, token="t")
WELCOME = Welcome(version=1, relay="00" * 16, credit=1 << 26, spread_ms=500, opens=2, streams=10)


class Conversation:
    """An endpoint and the relay's words to it."""

    def __init__(self, *, welcome: Welcome | None = WELCOME, limits: Limits | None = None, offer: bool = False) -> None:
        self.endpoint = Endpoint(SECRET, agent="test", limits=limits or Limits())
        self.table = self.endpoint.table
        self.now = 10.0
        if offer:
            self.endpoint.offer(OFFER)
        self.endpoint.connect()
        self.first = self.said()
        if welcome is not None:
            self.hear(frame(frames.WELCOME, payload=welcome.encode()))

    def hear(self, *message: bytes) -> None:
        self.endpoint.receive_message(b"".join(message), self.now)

    def said(self) -> list[tuple[str, int, int, bytes]]:
        """What the agent sends now: type, stream, value, payload of each frame."""
        message = b"".join(self.endpoint.data_to_send(1 << 20, self.now))
        return [(frames.TYPE_NAMES[t], s, v, bytes(p)) for t, _, s, v, p in frames.decode(message)] if message else []

    def names(self) -> list[str]:
        return [name for name, *_ in self.said()]

    def events(self) -> list[Event]:
        return self.endpoint.take_events()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.endpoint.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.endpoint.handle_timeout(self.now)

    def client(self) -> Stream:
        """A stream of ours that a host has opened; its number is 1."""
        stream = self.table.open(SERVICE, "11" * 16, self.now)
        trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
        self.hear(
            frame(frames.TRYING, 1, payload=trying.encode()),
            frame(frames.OPENED, 1, payload=Opened(limit=65536, attempt=1).encode()),
        )
        self.said()
        self.events()
        return stream

    def host(self) -> Stream:
        """A stream that we accepted as a host; its number is 2."""
        self.hear(open_frame(2))
        [event] = [e for e in self.events() if isinstance(e, events.StreamRequested)]
        self.table.accept(event.stream, self.now)
        self.said()
        return event.stream


def open_frame(number: int, *, service: str = SERVICE, uuid: str = "44" * 16) -> bytes:
    message = Open(service=service, uuid=uuid, limit=65536, attempt=1, process="55" * 16)
    return frame(frames.OPEN, number, payload=message.encode())


def reset_of(frame_said: tuple[str, int, int, bytes]) -> str:
    assert frame_said[0] == "RESET"
    return Reset.parse(frame_said[3]).code


def test_hello_is_first_and_alone() -> None:
    """Before WELCOME nothing but HELLO goes out, whatever waits."""
    talk = Conversation(welcome=None, offer=True)
    talk.table.open(SERVICE, "11" * 16, talk.now)
    assert [name for name, *_ in talk.first] == ["HELLO"]
    assert talk.names() == []
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert talk.names() == ["OFFER", "OPEN"]


@pytest.mark.parametrize(
    "message",
    [
        frame(frames.OFFERED, 1, payload=Offered(host="00" * 16).encode()),
        frame(frames.DATA, 2, 0, b"x"),
        open_frame(2),
        frame(frames.HELLO, payload=b"{}"),
    ],
)
def test_nothing_is_heard_before_welcome(message: bytes) -> None:
    """A frame that has no place before WELCOME ends the session."""
    talk = Conversation(welcome=None)
    with pytest.raises(RemoteProtocolError):
        talk.hear(message)


@pytest.mark.parametrize("version", [2, 1])
def test_a_second_or_strange_welcome_ends_the_session(version: int) -> None:
    """WELCOME comes once, in a version that we offered."""
    talk = Conversation(welcome=None if version == 2 else WELCOME)
    with pytest.raises(RemoteProtocolError):
        talk.hear(frame(frames.WELCOME, payload=b'{"version":%d,' % version + WELCOME.encode()[13:]))


def test_frames_that_only_agents_send_end_the_session() -> None:
    """A relay that sends an agent's frame has lost its way."""
    talk = Conversation()
    with pytest.raises(RemoteProtocolError, match="HELLO"):
        talk.hear(frame(frames.HELLO, payload=b"{}"))


def test_a_ping_is_answered_with_its_value() -> None:
    """PONG carries what PING did; a PONG needs no answer."""
    talk = Conversation()
    talk.hear(frame(frames.PING, value=77), frame(frames.PONG, value=5))
    assert talk.said() == [("PONG", 0, 77, b"")]


def test_goaway_is_reported_with_its_code() -> None:
    """What the relay says at the end reaches the program."""
    talk = Conversation()
    talk.events()
    talk.hear(frame(frames.GOAWAY, payload=Goaway(code="drain", text="bye").encode()))
    [event] = talk.events()
    assert isinstance(event, events.SessionRefused)
    assert event.goaway.code == "drain"


def test_offers_are_made_confirmed_and_taken_back() -> None:
    """An offer gets a number, the relay's OFFERED is reported, WITHDRAW names the number; repeating changes nothing."""
    talk = Conversation()
    talk.events()
    talk.endpoint.offer(OFFER)
    talk.endpoint.offer(OFFER)
    [(name, number, _, payload)] = talk.said()
    assert (name, number, Offer.parse(payload)) == ("OFFER", 1, OFFER)
    talk.hear(frame(frames.OFFERED, 1, payload=Offered(host=OFFER.host).encode()))
    talk.hear(frame(frames.OFFERED, 9, payload=Offered(host=OFFER.host).encode()))
    assert talk.events() == [events.Offered(SERVICE)]
    talk.endpoint.withdraw(SERVICE)
    assert talk.said() == [("WITHDRAW", 1, 0, b"")]
    talk.hear(open_frame(2))
    assert [reset_of(said) for said in talk.said()] == ["unknown_service"]


def test_a_refused_offer_is_not_repeated() -> None:
    """RESET of an offer's number ends it, in later sessions too."""
    talk = Conversation(offer=True)
    talk.events()
    talk.said()
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="not_permitted", text="no\x1b").encode()))
    assert talk.events() == [events.OfferRefused(SERVICE, "not_permitted", "no?")]
    talk.endpoint.disconnect()
    talk.endpoint.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert talk.names() == ["HELLO"]


def test_a_host_serves_only_what_it_offers() -> None:
    """A relay can't drive a host to any other service."""
    talk = Conversation(offer=True)
    talk.said()
    talk.hear(open_frame(2, service="bob/db"))
    assert [reset_of(said) for said in talk.said()] == ["unknown_service"]


def test_an_open_with_a_used_or_odd_number_ends_the_session() -> None:
    """The relay's numbers are even and new."""
    for number in (3, 2):
        talk = Conversation(offer=True)
        talk.hear(open_frame(2))
        with pytest.raises(RemoteProtocolError):
            talk.hear(open_frame(number, uuid="66" * 16))


def test_a_uuid_is_taken_once() -> None:
    """A second OPEN of a running stream's uuid is refused, and the stream goes on."""
    talk = Conversation(offer=True)
    stream = talk.host()
    talk.hear(open_frame(4))
    assert [reset_of(said) for said in talk.said()] == ["bad_request"]
    assert stream.state is State.OPEN


def test_a_full_host_says_busy() -> None:
    """A host takes as many streams as its limit, and refuses the next by name."""
    talk = Conversation(offer=True, limits=Limits(streams_host=1))
    talk.host()
    talk.hear(open_frame(4, uuid="66" * 16))
    assert [reset_of(said) for said in talk.said()] == ["busy"]


def test_opens_beyond_the_relays_limit_wait() -> None:
    """Only as many OPENs as WELCOME allows are without an answer; the next goes out when one is answered."""
    talk = Conversation()
    streams = [talk.table.open(SERVICE, f"{i:032x}", talk.now) for i in range(4)]
    assert talk.names() == ["OPEN", "OPEN"]
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="no_live_host").encode()))
    assert talk.names() == ["OPEN"]
    talk.table.reset(streams[1], "cancelled")
    assert talk.names() == ["RESET", "OPEN"]
    assert [s.state for s in streams] == [State.RESET, State.RESET, State.OPENING, State.OPENING]


def test_an_open_that_waits_can_be_given_up() -> None:
    """A stream that was never sent is forgotten without a word."""
    talk = Conversation(welcome=None)
    stream = talk.table.open(SERVICE, "11" * 16, talk.now)
    talk.table.reset(stream, "cancelled")
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert talk.names() == []
    assert not talk.table.by_uuid


@pytest.mark.parametrize(("welcome", "code"), [(None, "relay_unreachable"), (WELCOME, "host_timeout")])
def test_an_open_that_nobody_answers_fails_by_itself(welcome: Welcome | None, code: str) -> None:
    """Without a session, or with a relay that says nothing, an open ends within 20 s."""
    talk = Conversation(welcome=welcome)
    stream = talk.table.open(SERVICE, "11" * 16, talk.now)
    talk.events()
    talk.wait(19.9)
    assert talk.events() == []
    talk.wait(0.2)
    [event] = talk.events()
    assert isinstance(event, events.StreamWasReset)
    assert (event.stream, event.code) == (stream, code)


def test_early_data_begins_again_with_each_try() -> None:
    """What was sent early for a host that refused is sent again, from offset 0, for the next one."""
    talk = Conversation()
    stream = talk.table.open(SERVICE, "11" * 16, talk.now)
    talk.table.write(stream, b"request")
    assert talk.names() == ["OPEN"]
    for attempt in (1, 2):
        trying = Trying(attempt=attempt, process="22" * 16, host="33" * 16)
        talk.hear(frame(frames.TRYING, 1, payload=trying.encode()))
        assert talk.said() == [("EARLY", 1, frames.early_value(attempt, 0), b"request")]
    talk.table.write(stream, b"+")
    assert talk.said() == [("EARLY", 1, frames.early_value(2, 7), b"+")]
    talk.hear(frame(frames.OPENED, 1, payload=Opened(limit=16384, attempt=2).encode()))
    talk.table.write(stream, b"more")
    talk.table.write_eof(stream)
    assert [(n, v, p) for n, _, v, p in talk.said()] == [
        ("ACK", 0, (256 * 1024).to_bytes(8)),
        ("DATA", 8, b"more"),
        ("FIN", 12, b""),
    ]


@pytest.mark.parametrize(
    "opened",
    [Opened(limit=65536, attempt=2), Opened(limit=100, attempt=1)],
    ids=["of another attempt", "with a limit below the floor"],
)
def test_a_wrong_opened_resets_the_stream(opened: Opened) -> None:
    """OPENED must be of the current attempt and grant at least what early data may use."""
    talk = Conversation()
    talk.table.open(SERVICE, "11" * 16, talk.now)
    trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
    talk.hear(frame(frames.TRYING, 1, payload=trying.encode()), frame(frames.OPENED, 1, payload=opened.encode()))
    assert reset_of(talk.said()[-1]) == "protocol_error"


def test_a_stream_breaks_its_rules_alone() -> None:
    """Data before OPENED, over the limit or with a gap, and other impossible frames reset that stream only."""
    late = Trying(attempt=1, process="22" * 16, host="33" * 16).encode()
    for message, code in [
        (frame(frames.DATA, 1, 1, b"x"), "offset_mismatch"),
        (frame(frames.DATA, 1, 256 * 1024, b"x"), "credit_exceeded"),
        (frame(frames.FIN, 1, 5), "offset_mismatch"),
        (frames.ack_frame(1, 1, 0, fin=False), "offset_mismatch"),
        (frames.ack_frame(1, 0, 0, fin=True), "offset_mismatch"),
        (frame(frames.TRYING, 1, payload=late), "protocol_error"),
    ]:
        talk = Conversation()
        stream = talk.client()
        other = talk.table.open(SERVICE, "99" * 16, talk.now)
        talk.said()
        talk.hear(message)
        assert reset_of(talk.said()[0]) == code
        assert stream.state is State.RESET
        assert other.state is State.OPENING
        assert isinstance(talk.events()[-1], events.StreamWasReset)
    talk = Conversation()
    talk.table.open(SERVICE, "11" * 16, talk.now)
    talk.hear(frame(frames.DATA, 1, 0, b"x"))
    assert reset_of(talk.said()[-1]) == "protocol_error"


def test_late_frames_of_a_forgotten_stream_are_dropped() -> None:
    """What arrives for a number that is not known any more changes nothing."""
    talk = Conversation()
    stream = talk.client()
    talk.table.reset(stream, "cancelled")
    talk.said()
    talk.hear(frame(frames.DATA, 1, 0, b"x"), frame(frames.FIN, 1, 1), frames.ack_frame(1, 0, 9, fin=False))
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="cancelled").encode()))
    assert talk.said() == []
    assert talk.events() == []


def test_known_bytes_are_dropped_and_new_ones_delivered() -> None:
    """Overlapping DATA, as after a repetition, gives each byte once."""
    talk = Conversation()
    stream = talk.client()
    talk.hear(frame(frames.DATA, 1, 0, b"abc"), frame(frames.DATA, 1, 0, b"abc"), frame(frames.DATA, 1, 1, b"bcde"))
    received = [e for e in talk.events() if isinstance(e, events.DataReceived)]
    assert [bytes(e.data) for e in received] == [b"abc", b"de"]
    assert stream.inbound.received == 5


def test_an_acknowledgement_comes_after_the_delay_or_a_quarter_of_the_grant() -> None:
    """Received bytes are acknowledged within 100 ms, and at once when a quarter of the window was consumed."""
    talk = Conversation()
    stream = talk.client()
    talk.hear(frame(frames.DATA, 1, 0, bytes(10)))
    assert talk.said() == []
    talk.wait(0.101)
    assert talk.said() == [("ACK", 1, 10, (256 * 1024).to_bytes(8))]
    talk.hear(frame(frames.DATA, 1, 10, bytes(65536)))
    talk.table.consumed(stream, 65546, talk.now)
    assert talk.said() == [("ACK", 1, 65546, (256 * 1024 + 65546).to_bytes(8))]
    talk.wait(1)
    assert talk.said() == []


def test_both_directions_end_by_themselves() -> None:
    """A finished direction leaves the other open; after both the stream is gone, and its last ACK still goes out."""
    talk = Conversation(offer=True)
    stream = talk.host()
    talk.hear(frames.ack_frame(2, 0, 65536, fin=False), frame(frames.FIN, 2, 0))
    assert isinstance(talk.events()[-1], events.EndReceived)
    assert talk.names() == ["ACK"]
    talk.table.write(stream, b"bye")
    talk.table.write_eof(stream)
    assert talk.names() == ["DATA", "FIN"]
    talk.hear(frame(frames.FIN, 2, 0))
    talk.hear(frames.ack_frame(2, 3, 65536, fin=True))
    assert [type(e) for e in talk.events()] == [events.EndAcknowledged, events.StreamFinished]
    assert talk.names() == ["ACK"]
    assert not talk.table.by_uuid


def test_a_writer_may_not_write_behind_its_end() -> None:
    """Bytes after the end are the program's mistake, and said so."""
    talk = Conversation()
    stream = talk.client()
    talk.table.write_eof(stream)
    with pytest.raises(LocalProtocolError):
        talk.table.write(stream, b"x")


def test_a_stream_that_ended_takes_anything_quietly() -> None:
    """After a reset the program's calls change nothing: it may not know yet."""
    talk = Conversation(offer=True)
    stream = talk.host()
    talk.hear(frame(frames.RESET, 2, payload=Reset(code="cancelled").encode()))
    talk.table.accept(stream, talk.now)
    assert talk.table.write(stream, b"x")
    talk.table.write_eof(stream)
    talk.table.close(stream, talk.now)
    talk.table.reset(stream, "cancelled")
    assert talk.said() == []


def test_reset_closed_is_an_end_and_not_a_failure() -> None:
    """RESET with `closed` finishes the stream."""
    talk = Conversation()
    stream = talk.client()
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="closed").encode()))
    assert talk.events() == [events.StreamFinished(stream)]


def test_a_lost_leg_resets_the_stream() -> None:
    """GONE ends a stream, as long as none can be resumed."""
    talk = Conversation()
    talk.client()
    talk.hear(frame(frames.GONE, 1))
    [event] = talk.events()
    assert isinstance(event, events.StreamWasReset)
    assert event.code == "resume_expired"


def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    """A host resets a stream that its client did not confirm within 30 s, and keeps one that it did."""
    for confirmed in (False, True):
        talk = Conversation(offer=True)
        stream = talk.host()
        if confirmed:
            talk.hear(frames.ack_frame(2, 0, 65536, fin=False))
        talk.wait(30.1)
        assert (stream.state is State.RESET) is not confirmed


def test_what_arrives_after_close_is_refused() -> None:
    """A program that closed gets no more bytes: the peer is told by a reset, and a silent one is let go in a minute."""
    for silent in (False, True):
        talk = Conversation()
        stream = talk.client()
        talk.table.close(stream, talk.now)
        talk.table.close(stream, talk.now)
        assert talk.names() == ["FIN"]
        if silent:
            talk.wait(61)
        else:
            talk.hear(frame(frames.DATA, 1, 0, b"x"))
        assert [reset_of(said) for said in talk.said()] == ["cancelled"]
        assert isinstance(talk.events()[-1], events.StreamWasReset)


def test_a_writer_is_paused_and_resumed_by_what_is_unsent() -> None:
    """Above the mark of unsent bytes a writer is told to stop, and told to go on at half of it."""
    limits = Limits(unsent=1000)
    talk = Conversation(limits=limits)
    stream = talk.client()
    stream.outbound.limit = 0
    assert talk.table.write(stream, bytes(999))
    assert not talk.table.write(stream, bytes(1))
    talk.hear(frames.ack_frame(1, 0, 400, fin=False))
    assert talk.names() == ["DATA"]
    assert talk.events() == []
    talk.hear(frames.ack_frame(1, 400, 600, fin=False))
    assert talk.names() == ["DATA"]
    assert talk.events() == [events.WritingResumed(stream)]


def test_the_process_keeps_within_its_replay_budget() -> None:
    """When unacknowledged bytes reach the budget, writers with more than the floor stop until some are acknowledged."""
    talk = Conversation(limits=Limits(replay=30_000, window_floor=1000))
    stream = talk.client()
    assert talk.table.write(stream, bytes(29_999))
    assert not talk.table.write(stream, bytes(1))
    assert talk.names() == ["DATA"]
    assert talk.events() == []
    talk.hear(frames.ack_frame(1, 1000, 65536, fin=False))
    assert talk.events() == [events.WritingResumed(stream)]
    small = talk.table.open(SERVICE, "77" * 16, talk.now)
    talk.table.write(stream, bytes(1000))
    assert talk.table.write(small, bytes(10))


def test_a_lost_session_repeats_opens_without_a_host_and_resets_the_rest() -> None:
    """Without TRYING an open is sent again; with it the outcome is not known; an open stream can't go on."""
    talk = Conversation(offer=True)
    hosted = talk.host()
    tried = talk.table.open(SERVICE, "11" * 16, talk.now)
    trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
    talk.hear(frame(frames.TRYING, 3, payload=trying.encode()))
    fresh = talk.table.open(SERVICE, "22" * 16, talk.now)
    talk.events()
    talk.endpoint.disconnect()
    lost = {e.stream: e.code for e in talk.events() if isinstance(e, events.StreamWasReset)}
    assert lost == {hosted: "resume_expired", tried: "open_interrupted"}
    talk.endpoint.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert talk.names() == ["HELLO", "OFFER", "OPEN"]
    assert fresh.number == 3


def test_repeated_opens_promise_what_the_new_session_allows() -> None:
    """Credit that an OPEN promised in a lost session does not count in the next, which may have less."""
    talk = Conversation(
        welcome=Welcome(version=1, relay="00" * 16, credit=1 << 26, spread_ms=0, opens=256, streams=999)
    )
    for number in range(256):
        talk.table.open(SERVICE, f"{number:032x}", talk.now)
    talk.endpoint.disconnect()
    talk.endpoint.connect()
    tight = Welcome(version=1, relay="00" * 16, credit=1 << 24, spread_ms=0, opens=256, streams=999)
    talk.hear(frame(frames.WELCOME, payload=tight.encode()))
    assert talk.table.budget.total == 1 << 24
    assert talk.table.budget.within(256)


def test_a_stream_below_the_floor_may_always_write() -> None:
    """A writer that was paused by the process's replay budget goes on when its own bytes are acknowledged."""
    talk = Conversation(limits=Limits(replay=30_000, window_floor=1000))
    greedy = talk.client()
    talk.table.write(greedy, bytes(30_000))
    other = talk.table.open(SERVICE, "77" * 16, talk.now)
    talk.hear(
        frame(frames.TRYING, 3, payload=Trying(attempt=1, process="22" * 16, host="33" * 16).encode()),
        frame(frames.OPENED, 3, payload=Opened(limit=65536, attempt=1).encode()),
    )
    assert not talk.table.write(other, bytes(1000))
    talk.said()
    talk.events()
    talk.hear(frames.ack_frame(3, 1000, 65536, fin=False))
    assert talk.events() == [events.WritingResumed(other)]
    assert greedy.writer_paused


def test_a_closed_stream_keeps_its_deadline() -> None:
    """A program that closed before it was confirmed, or opened, is rid of a silent peer in a minute all the same."""
    talk = Conversation(offer=True)
    stream = talk.host()
    talk.table.close(stream, talk.now)
    talk.hear(frames.ack_frame(2, 0, 65536, fin=False))
    talk.wait(61)
    assert stream.state is State.RESET
    talk = Conversation()
    stream = talk.table.open(SERVICE, "11" * 16, talk.now)
    talk.table.close(stream, talk.now)
    talk.hear(
        frame(frames.TRYING, 1, payload=Trying(attempt=1, process="22" * 16, host="33" * 16).encode()),
        frame(frames.OPENED, 1, payload=Opened(limit=65536, attempt=1).encode()),
    )
    talk.wait(61)
    assert stream.state is State.RESET


def test_refusing_a_uuid_in_use_leaves_its_owner_alone() -> None:
    """A refused OPEN does not take the running stream of the same uuid out of the table."""
    talk = Conversation(offer=True)
    stream = talk.host()
    talk.hear(open_frame(4))
    assert talk.table.by_uuid == {stream.uuid: stream}
