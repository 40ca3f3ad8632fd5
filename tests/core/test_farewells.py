"""What a program wrote before it ended arrives, and then the reset."""

from __future__ import annotations

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.core.conversation import Conversation, reset_of


def test_a_reset_waits_for_last_words() -> None:
    """What a program wrote before it ended abnormally is acknowledged first; only then the reset is sent."""
    talk = Conversation()
    stream = talk.client()
    talk.table.write(stream, b"last words")
    assert talk.names() == ["DATA"]
    talk.table.farewells.begin(stream, "cancelled", "", talk.now)
    talk.hear(frames.ack_frame(1, 9, 1000, fin=False))
    talk.hear(frame(frames.DATA, 1, 0, b"for nobody"))
    talk.hear(frame(frames.FIN, 1, 10))
    assert talk.said() == [] and talk.events() == []
    talk.hear(frames.ack_frame(1, 10, 1000, fin=False))
    assert [reset_of(said) for said in talk.said()] == ["cancelled"]
    assert isinstance(talk.events()[-1], events.StreamWasReset)


def test_last_words_that_nobody_takes_do_not_wait_for_ever() -> None:
    """A peer that takes the last data, however slowly, gets it all; a peer that takes none for a time is reset."""
    talk = Conversation()
    stream = talk.client()
    talk.table.write(stream, b"last words")
    talk.names()
    talk.table.farewells.begin(stream, "cancelled", "", talk.now)
    for received in range(1, 5):
        talk.wait(talk.table.limits.last_words - 0.1)
        talk.hear(frames.ack_frame(1, received, 1000, fin=False))
    talk.wait(talk.table.limits.last_words - 0.1)
    assert not stream.ended
    talk.wait(talk.table.limits.last_words)
    talk.wait(talk.table.limits.last_words)
    assert [reset_of(said) for said in talk.said()] == ["cancelled"]


def test_a_program_that_said_nothing_is_reset_at_once() -> None:
    """If the peer has everything, or there is nothing to send, a reset is sent at once."""
    for said in (b"", b"x"):
        talk = Conversation()
        stream = talk.client()
        talk.table.write(stream, said)
        talk.names()
        talk.hear(frames.ack_frame(1, len(said), 1000, fin=False))
        talk.table.farewells.begin(stream, "cancelled", "", talk.now)
        assert [reset_of(frame_) for frame_ in talk.said()] == ["cancelled"]


def _sends_all_it_may(talk: Conversation, stream: Stream, most: int) -> int:
    """Let the peer send as far as its credit allows, at most ``most`` bytes; returns how many."""
    sent = stream.inbound.received
    began = sent
    while size := min(stream.inbound.limit - sent, 60_000, began + most - sent):
        talk.hear(frame(frames.DATA, 1, sent, bytes(size)))
        sent += size
        talk.wait(talk.table.limits.ack_delay)
        assert set(talk.names()) <= {"ACK"}
    return sent - began


def _parted(dropped: int) -> tuple[Conversation, Stream]:
    """A client's program that has ended after ten bytes, with a limit on its peer's credited bytes."""
    talk = Conversation(limits=Limits(dropped=dropped))
    stream = talk.client()
    talk.table.write(stream, b"last words")
    talk.names()
    talk.table.farewells.begin(stream, "cancelled", "", talk.now)
    return talk, stream


def test_dropped_bytes_are_credited_up_to_a_bound() -> None:
    """A peer whose program sends before it reads is credited for dropped bytes up to the bound, and not above."""
    talk, stream = _parted(1_000_003)
    assert _sends_all_it_may(talk, stream, 1_000_003) == 1_000_003
    _sends_all_it_may(talk, stream, 5_000_000)
    assert stream.inbound.consumed == 1_000_003
    assert stream.inbound.received == stream.inbound.limit == 1_000_003 + stream.inbound.window
    assert not stream.ended
    talk.hear(frames.ack_frame(1, 10, 1000, fin=False))
    assert [reset_of(said) for said in talk.said()] == ["cancelled"]


def test_a_sender_beyond_the_bound_is_reset_soon() -> None:
    """A sender that used up the bound and takes nothing is reset after seconds; one that takes bytes gets them all."""
    talk, stream = _parted(100_000)
    _sends_all_it_may(talk, stream, 99_999)
    talk.wait(talk.table.limits.last_words - 10)
    assert not stream.ended
    _sends_all_it_may(talk, stream, 5_000_000)
    for received in range(1, 5):
        talk.hear(frames.ack_frame(1, received, 1000, fin=False))
        talk.wait(talk.table.limits.last_chance)
        assert not stream.ended
    talk.wait(talk.table.limits.last_chance)
    assert [reset_of(said) for said in talk.said()] == ["cancelled"]


def test_a_close_is_bounded_alike() -> None:
    """Bytes that arrive after a close are credited up to the same bound, which includes the first bytes."""
    talk = Conversation(limits=Limits(dropped=300_000))
    stream = talk.client()
    talk.table.write(stream, b"last words")
    talk.table.close(stream, talk.now)
    talk.names()
    _sends_all_it_may(talk, stream, 5_000_000)
    assert stream.inbound.consumed == 300_000
    assert not stream.ended


def test_two_programs_that_end_at_once() -> None:
    """Last data that no program takes is acknowledged all the same, so neither end waits for the other."""
    talk, _ = _parted(0)
    talk.hear(frame(frames.DATA, 1, 0, b"its own"))
    talk.wait(talk.table.limits.ack_delay)
    assert [(name, value) for name, _, value, _ in talk.said()] == [("ACK", 7)]
