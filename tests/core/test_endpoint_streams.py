"""An agent's endpoint: what happens to one stream."""

from __future__ import annotations

import pytest

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.states import State
from kdispatch_protocol.errors import LocalProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Open, Opened, Reset, Trying
from tests.core.conversation import SERVICE, Conversation, reset_of


def test_early_data_begins_again_with_each_try() -> None:
    """Early data for a host that refused is sent again, from offset 0, to the next host."""
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
    """OPENED must belong to the current attempt and grant at least what early data may use."""
    talk = Conversation()
    talk.table.open(SERVICE, "11" * 16, talk.now)
    trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
    talk.hear(frame(frames.TRYING, 1, payload=trying.encode()), frame(frames.OPENED, 1, payload=opened.encode()))
    assert reset_of(talk.said()[-1]) == "protocol_error"


def test_a_stream_breaks_its_rules_alone() -> None:
    """Data before OPENED, over the limit or with a gap, and other invalid frames reset that stream only."""
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
    """Frames for a number that is no longer known change nothing."""
    talk = Conversation()
    stream = talk.client()
    talk.table.reset(stream, "cancelled")
    talk.said()
    talk.hear(frame(frames.DATA, 1, 0, b"x"), frame(frames.FIN, 1, 1), frames.ack_frame(1, 0, 9, fin=False))
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="cancelled").encode()))
    assert talk.said() == []
    assert talk.events() == []


def test_known_bytes_are_dropped_and_new_ones_delivered() -> None:
    """Overlapping DATA, as after a repetition, delivers each byte once."""
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
    talk.table.consume(stream, 65546, talk.now)
    assert talk.said() == [("ACK", 1, 65546, (256 * 1024 + 65546).to_bytes(8))]
    talk.wait(1)
    assert talk.said() == []


def test_both_directions_end_by_themselves() -> None:
    """A finished direction leaves the other open; after both, the stream is gone, and its last ACK still goes out."""
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
    """Writing after the end is the program's error, and reported as such."""
    talk = Conversation()
    stream = talk.client()
    talk.table.write_eof(stream)
    with pytest.raises(LocalProtocolError):
        talk.table.write(stream, b"x")


def test_a_stream_that_ended_takes_anything_quietly() -> None:
    """After a reset, the program's calls change nothing, because it may not know of the reset yet."""
    talk = Conversation(offer=True)
    stream = talk.host()
    talk.hear(frame(frames.RESET, 2, payload=Reset(code="cancelled").encode()))
    talk.table.accept(stream, talk.now)
    assert talk.table.write(stream, b"x")
    talk.table.write_eof(stream)
    talk.table.close(stream, talk.now)
    talk.table.reset(stream, "cancelled")
    assert talk.said() == []


def test_reset_closed_is_an_end_where_the_end_is_all_that_was_missing() -> None:
    """RESET with `closed` replaces the last ACK; anywhere else it would hide that bytes are missing."""
    talk = Conversation()
    stream = talk.client()
    talk.table.write_eof(stream)
    talk.said()
    talk.hear(frame(frames.FIN, 1))
    talk.events()
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="closed").encode()))
    assert talk.events() == [events.EndAcknowledged(stream), events.StreamFinished(stream)]
    talk = Conversation()
    talk.client()
    talk.hear(frame(frames.RESET, 1, payload=Reset(code="closed").encode()))
    [event] = talk.events()
    assert isinstance(event, events.StreamWasReset)
    assert event.code == "offset_mismatch"


def test_a_lost_leg_resets_the_stream() -> None:
    """GONE ends a stream that has no secret."""
    talk = Conversation()
    talk.client()
    talk.hear(frame(frames.GONE, 1))
    [event] = talk.events()
    assert isinstance(event, events.StreamWasReset)
    assert event.code == "resume_expired"


def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    """A host resets a stream that its client did not confirm within 30 s, and keeps one that was confirmed."""
    for confirmed in (False, True):
        talk = Conversation(offer=True)
        stream = talk.host()
        if confirmed:
            talk.hear(frames.ack_frame(2, 0, 65536, fin=False))
        talk.wait(30.1)
        assert (stream.state is State.RESET) is not confirmed


def test_what_arrives_after_close_is_refused() -> None:
    """A program that closed gets no more bytes: its peer is reset if it sends, and dropped after a silent minute."""
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
            assert talk.said() == []  # the end that was written is sent first
            talk.hear(frames.ack_frame(1, 0, 1000, fin=True))
        assert [reset_of(said) for said in talk.said()] == ["cancelled"]
        assert isinstance(talk.events()[-1], events.StreamWasReset)


def test_a_writer_is_paused_and_resumed_by_what_is_unsent() -> None:
    """A writer is paused above the mark of unsent bytes, and resumed at half of it."""
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


def test_a_stream_keeps_within_its_share_of_the_replay_budget() -> None:
    """A writer stops when its unacknowledged bytes reach half of what the others leave, until some are acknowledged."""
    talk = Conversation(limits=Limits(replay=30_000, window_floor=1000))
    stream = talk.client()
    other = talk.table.open(SERVICE, "77" * 16, talk.now)
    talk.said()
    assert talk.table.write(stream, bytes(14_999))
    assert not talk.table.write(stream, bytes(1))
    assert talk.names() == ["DATA"]
    assert talk.events() == []
    assert talk.table.write(other, bytes(7499))
    assert not talk.table.write(other, bytes(1))
    talk.hear(frames.ack_frame(1, 3750, 65536, fin=False))
    assert talk.events() == []
    talk.hear(frames.ack_frame(1, 3751, 65536, fin=False))
    assert talk.events() == [events.WritingResumed(stream)]


def test_a_stream_below_the_floor_may_always_write() -> None:
    """If the others leave almost nothing, a writer may still use its floor."""
    talk = Conversation(limits=Limits(replay=30_000, window_floor=1000))
    stream = talk.client()
    for one in range(29):
        talk.table.write(talk.table.open(SERVICE, f"{one:032}", talk.now), bytes(1000))
    talk.said()
    assert talk.table.write(stream, bytes(999))
    assert not talk.table.write(stream, bytes(1))
    assert talk.names() == ["DATA"]
    talk.hear(frames.ack_frame(1, 1, 65536, fin=False))
    assert talk.events() == [events.WritingResumed(stream)]


def test_a_closed_stream_keeps_its_deadline() -> None:
    """A program that closes before its stream was confirmed or opened is rid of a silent peer within a minute."""
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


def test_acks_of_an_opened_and_of_an_end_wait_for_company() -> None:
    """These ACKs alone cause no sending for 4 ms, and go along with anything sent before that."""
    talk = Conversation()
    talk.table.open(SERVICE, "11" * 16, talk.now)
    trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
    opened = Opened(limit=65536, attempt=1)
    talk.said()
    talk.hear(frame(frames.TRYING, 1, payload=trying.encode()), frame(frames.OPENED, 1, payload=opened.encode()))
    assert not talk.session.outbox
    talk.wait(0.003)
    assert not talk.session.outbox
    talk.wait(0.002)
    assert talk.session.outbox and talk.names() == ["ACK"]
    talk.hear(frame(frames.FIN, 1, 0))
    assert not talk.session.outbox
    talk.table.open(SERVICE, "22" * 16, talk.now)
    assert talk.session.outbox and talk.names() == ["OPEN", "ACK"]
    talk.wait(0.005)
    assert not talk.session.outbox


def test_a_stream_that_ended_has_no_deadline_left() -> None:
    """Bytes of a stream that has finished cause no wake-up for their acknowledgement."""
    talk = Conversation()
    stream = talk.client()
    before = len(talk.table.timers)
    talk.hear(frame(frames.DATA, 1, 0, b"answer"))
    assert len(talk.table.timers) == before + 1
    talk.table.write_eof(stream)
    talk.said()
    talk.hear(frames.ack_frame(1, 0, 65536, fin=True), frame(frames.FIN, 1, 6))
    talk.said()
    talk.wait(0.005)  # the delayed ACK had its turn
    assert stream.state is State.CLOSED
    assert len(talk.table.timers) <= 1  # the sweep of its tombstone


def test_an_unknown_kind_of_flow() -> None:
    """A host refuses an OPEN of a kind that it does not know, even where the relay has passed it on."""
    talk = Conversation(offer=True)
    talk.events()
    message = Open(service=SERVICE, uuid="44" * 16, limit=65536, attempt=1, process="55" * 16, kind="datagram")
    talk.hear(frame(frames.OPEN, 2, payload=message.encode()))
    [(name, number, _, payload)] = [said for said in talk.said() if said[0] == "RESET"]
    assert (name, number, Reset.parse(payload).code) == ("RESET", 2, "bad_request")
    assert not [event for event in talk.events() if isinstance(event, events.StreamRequested)]
