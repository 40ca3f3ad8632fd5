"""An agent's endpoint: the session, offers and opens."""

from __future__ import annotations

import pytest

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.states import State
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Goaway, Offer, Offered, Reset, Trying, Welcome
from tests.core.conversation import OFFER, SERVICE, WELCOME, Conversation, open_frame, reset_of


def test_hello_is_first_and_alone() -> None:
    """Before WELCOME an agent sends HELLO and nothing else, whatever waits."""
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
    """A frame that is not allowed before WELCOME ends the session."""
    talk = Conversation(welcome=None)
    with pytest.raises(RemoteProtocolError):
        talk.hear(message)


@pytest.mark.parametrize("version", [2, 1])
def test_a_second_or_strange_welcome_ends_the_session(version: int) -> None:
    """WELCOME comes once, in a version that the agent offered."""
    talk = Conversation(welcome=None if version == 2 else WELCOME)
    with pytest.raises(RemoteProtocolError):
        talk.hear(frame(frames.WELCOME, payload=b'{"version":%d,' % version + WELCOME.encode()[13:]))


def test_frames_that_only_agents_send_end_the_session() -> None:
    """A frame that only agents send ends the session if it comes from a relay."""
    talk = Conversation()
    with pytest.raises(RemoteProtocolError, match="HELLO"):
        talk.hear(frame(frames.HELLO, payload=b"{}"))


def test_a_ping_is_answered_with_its_value() -> None:
    """PONG has the value of its PING; a PONG needs no answer."""
    talk = Conversation()
    talk.hear(frame(frames.PING, value=77), frame(frames.PONG, value=5))
    assert talk.said() == [("PONG", 0, 77, b"")]


def test_goaway_is_reported_with_its_code() -> None:
    """The relay's GOAWAY reaches the program."""
    talk = Conversation()
    talk.events()
    talk.hear(frame(frames.GOAWAY, payload=Goaway(code="drain", text="bye").encode()))
    [event] = talk.events()
    assert isinstance(event, events.SessionRefused)
    assert event.goaway.code == "drain"


def test_offers_are_made_confirmed_and_taken_back() -> None:
    """An offer gets a number, OFFERED is reported, WITHDRAW names the number; repeating these changes nothing."""
    talk = Conversation()
    talk.events()
    talk.endpoint.offer(OFFER)
    talk.endpoint.offer(OFFER)
    [(name, number, _, payload)] = talk.said()
    assert (name, number, Offer.parse(payload)) == ("OFFER", 1, OFFER)
    talk.hear(frame(frames.OFFERED, 1, payload=Offered(host=OFFER.host).encode()))
    talk.hear(frame(frames.OFFERED, 9, payload=Offered(host=OFFER.host).encode()))
    assert talk.events() == [events.OfferListed(SERVICE)]
    talk.endpoint.withdraw(SERVICE)
    assert talk.said() == [("WITHDRAW", 1, 0, b"")]
    talk.hear(open_frame(2))
    assert [reset_of(said) for said in talk.said()] == ["unknown_service"]


def test_a_refused_offer_is_not_repeated() -> None:
    """RESET of an offer's number ends the offer, also in later sessions."""
    talk = Conversation(offer=True)
    talk.events()
    talk.said()
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="not_permitted", text="no\x1b").encode()))
    assert talk.events() == [events.OfferRefused(SERVICE, "not_permitted", "no?")]
    talk.lose()
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert talk.names() == ["HELLO"]


def test_a_host_serves_only_what_it_offers() -> None:
    """A relay cannot make a host serve any other service."""
    talk = Conversation(offer=True)
    talk.said()
    talk.hear(open_frame(2, service="bob/db"))
    assert [reset_of(said) for said in talk.said()] == ["unknown_service"]


def test_an_open_with_a_used_or_odd_number_ends_the_session() -> None:
    """The relay's numbers are even and new; an OPEN with another ends the session."""
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
    """A host accepts streams up to its limit, and refuses the next with `busy`."""
    talk = Conversation(offer=True, limits=Limits(streams_host=1))
    talk.host()
    talk.hear(open_frame(4, uuid="66" * 16))
    assert [reset_of(said) for said in talk.said()] == ["busy"]


def test_opens_beyond_the_relays_limit_wait() -> None:
    """Only as many OPENs as WELCOME allows are pending; the next goes out when one is answered."""
    talk = Conversation()
    streams = [talk.table.open(SERVICE, f"{i:032x}", talk.now) for i in range(4)]
    assert talk.names() == ["OPEN", "OPEN"]
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="no_live_host").encode()))
    assert talk.names() == ["OPEN"]
    talk.table.reset(streams[1], "cancelled")
    assert talk.names() == ["RESET", "OPEN"]
    assert [s.state for s in streams] == [State.RESET, State.RESET, State.OPENING, State.OPENING]


def test_an_open_that_waits_can_be_given_up() -> None:
    """A stream whose OPEN was never sent is forgotten without a frame."""
    talk = Conversation(welcome=None)
    stream = talk.table.open(SERVICE, "11" * 16, talk.now)
    talk.table.reset(stream, "cancelled")
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert talk.names() == []
    assert not talk.table.by_uuid


@pytest.mark.parametrize(("welcome", "code"), [(None, "relay_unreachable"), (WELCOME, "host_timeout")])
def test_an_open_that_nobody_answers_fails_by_itself(welcome: Welcome | None, code: str) -> None:
    """Without a session, or with a silent relay, an open fails after 30 s."""
    talk = Conversation(welcome=welcome)
    stream = talk.table.open(SERVICE, "11" * 16, talk.now)
    talk.events()
    talk.wait(29.9)
    assert talk.events() == []
    talk.wait(0.2)
    [event] = talk.events()
    assert isinstance(event, events.StreamWasReset)
    assert (event.stream, event.code) == (stream, code)


def test_a_lost_session_repeats_opens_without_a_host_and_resets_the_rest() -> None:
    """Without a secret, a stream cannot resume and is reset; an open that has sent no data is sent again."""
    talk = Conversation(offer=True)
    hosted = talk.host()
    tried = talk.table.open(SERVICE, "11" * 16, talk.now)
    trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
    talk.hear(frame(frames.TRYING, 3, payload=trying.encode()))
    talk.table.write(tried, b"early")
    assert "EARLY" in talk.names()
    fresh = talk.table.open(SERVICE, "22" * 16, talk.now)
    talk.events()
    talk.lose()
    lost = {e.stream: e.code for e in talk.events() if isinstance(e, events.StreamWasReset)}
    assert lost == {hosted: "resume_expired", tried: "open_interrupted"}
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert talk.names() == ["HELLO", "OFFER", "OPEN"]
    assert fresh.number == 3


def test_repeated_opens_promise_what_the_new_session_allows() -> None:
    """Credit promised by an OPEN in a lost session does not count in the next session, which may have less."""
    talk = Conversation(
        welcome=Welcome(version=1, relay="00" * 16, credit=1 << 26, spread_ms=0, opens=256, streams=999)
    )
    for number in range(256):
        talk.table.open(SERVICE, f"{number:032x}", talk.now)
    talk.lose()
    talk.connect()
    tight = Welcome(version=1, relay="00" * 16, credit=1 << 24, spread_ms=0, opens=256, streams=999)
    talk.hear(frame(frames.WELCOME, payload=tight.encode()))
    assert talk.table.budget.total == 1 << 24
    assert talk.table.budget.within(256)


def test_refusing_a_uuid_in_use_leaves_its_owner_alone() -> None:
    """A refused OPEN does not remove the running stream with the same uuid from the table."""
    talk = Conversation(offer=True)
    stream = talk.host()
    talk.hear(open_frame(4))
    assert talk.table.by_uuid == {stream.uuid: stream}
